"""What a run left behind, made readable: the run report, comparisons, pictures, and tables from the ledger."""
