"""How the work of one step is spread."""
