"""Seeing inside a model: what each head looks at, what each layer would say, how sure it is. Works on ids, not text."""
