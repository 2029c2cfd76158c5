"""Arrays on disk and the cache of tokens."""
