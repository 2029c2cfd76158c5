"""The vocabulary of other tools."""
