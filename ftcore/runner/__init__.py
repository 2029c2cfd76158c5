"""A plan carried out: the run, its folder and its records."""
