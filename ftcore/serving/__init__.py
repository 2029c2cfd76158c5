"""``ft serve``: an OpenAI-compatible server. One thread owns the models; the event loop only carries messages."""
