"""One optimizer step: micro-batches, guards, metrics."""
