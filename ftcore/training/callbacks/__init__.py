"""Callbacks of every run."""
