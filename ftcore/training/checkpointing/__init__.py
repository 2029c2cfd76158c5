"""Checkpoints: written whole, checked, resumed to the bit."""
