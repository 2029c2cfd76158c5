"""Cross-checks of a plan's options."""
