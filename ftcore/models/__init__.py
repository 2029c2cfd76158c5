"""Model resolution, model files and adapters."""
