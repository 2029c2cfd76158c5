"""Datasets as named, and their files read row by row."""
