"""Parts put together: data, tokenizer, training and what follows it, models by name, runs, this machine's state."""
