"""Datasets of tokenised rows, with packing, mixing and preference pairs."""
