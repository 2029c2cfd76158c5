"""From a file and ``key=value`` words to a `ftcore.api.plan.Plan`. Imports no torch."""
