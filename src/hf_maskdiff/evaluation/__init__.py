"""The metrics the field quotes, and exact test-beds. Import the module you need: nothing here is loaded with the package."""
