"""Reward models from pairs."""
