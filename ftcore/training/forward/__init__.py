"""The model's forward pass to losses, log-probabilities and rewards."""
