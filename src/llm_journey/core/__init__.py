"""What every part relies on: errors, files, paths, configuration, console, lineage, ledger. Imports nothing above it."""
