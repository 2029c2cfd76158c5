"""The API for plugins: kinds of component, samples, the plan, the registry. Does not import torch."""
