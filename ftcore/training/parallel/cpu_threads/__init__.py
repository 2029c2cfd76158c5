"""One step on two groups of CPU threads."""
