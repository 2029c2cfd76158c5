"""The training engine that all stages share."""
