"""The metrics used in papers, and models with known laws to test samplers. Import the module you need."""
