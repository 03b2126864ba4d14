"""The metrics the field quotes, and exact test-beds: import the module you need, nothing is loaded here."""
