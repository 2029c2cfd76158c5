"""Built-in."""
