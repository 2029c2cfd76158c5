"""Hardware detection and memory estimates from config.json. Does not import torch."""
