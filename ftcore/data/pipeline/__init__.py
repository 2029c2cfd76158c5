"""Loads or streams all datasets of a run, with worker processes."""
