"""Tokenised rows as a dataset: packed, mixed, in pairs."""
