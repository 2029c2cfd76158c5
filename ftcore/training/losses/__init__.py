"""Losses over hidden states and sequences; no full logits."""
