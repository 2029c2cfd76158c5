"""Outputs of layers below the first trainable one, computed once and kept."""
