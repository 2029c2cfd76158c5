"""The runtime of the backend ``reference``."""

from __future__ import annotations

from ftcore.api.plan import Plan
from ftcore.training.backend import BackendRuntime


def runtime(plan: Plan) -> BackendRuntime:
    """Plain torch: the base class, unchanged."""
    return BackendRuntime()
