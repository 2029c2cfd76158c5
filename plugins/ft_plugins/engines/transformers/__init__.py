"""Inference by transformers, with continuous batching."""
