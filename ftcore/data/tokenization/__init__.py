"""Texts to token ids, with the reason of each label."""
