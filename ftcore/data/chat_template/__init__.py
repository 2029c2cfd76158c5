"""Chat templates rendered, with the spans that are trained."""
