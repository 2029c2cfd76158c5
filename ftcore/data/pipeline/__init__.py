"""All datasets of a run, loaded or streamed, in worker processes."""
