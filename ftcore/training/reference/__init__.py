"""Reference models: start weights and cached log-probabilities."""
