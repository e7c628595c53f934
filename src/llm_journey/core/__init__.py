"""What every part relies on: errors, files, paths, recipes, console, lineage, ledger. Imports nothing above it."""
