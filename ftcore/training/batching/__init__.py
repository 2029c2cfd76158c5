"""Batches: samplers, token budgets, collators, shared prefixes."""
