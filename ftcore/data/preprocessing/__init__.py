"""Samples to tokenised rows."""
