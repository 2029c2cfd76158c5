"""What a batch costs, for decisions on how it is computed."""
