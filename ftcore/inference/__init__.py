"""Prompts, sessions and outputs of chat, generate and serve."""
