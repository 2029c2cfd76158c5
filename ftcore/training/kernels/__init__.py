"""Matrix products and recomputation."""
