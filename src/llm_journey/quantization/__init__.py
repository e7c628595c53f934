"""Weights in few bits: the formats, each with its formula, and the products that compute with them."""
