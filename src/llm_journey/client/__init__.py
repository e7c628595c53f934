"""What a program asks of a language model or an embedder, wherever it runs; nothing here loads torch."""
