"""Which dataset format has rows, and which samples a stage takes."""
