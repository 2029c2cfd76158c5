"""Replacements of parts of a loaded model."""
