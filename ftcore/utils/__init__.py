"""General helpers. Nothing here imports torch."""
