"""Helpers without a subject of their own, each once and free of torch."""
