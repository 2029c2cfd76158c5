"""Where a model is, what its files say, its adapters."""
