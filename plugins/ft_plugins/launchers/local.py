"""A run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ftcore.api.components import Launcher

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


class Local(Launcher):
    """Starts no other process."""

    def launch(self, plan: Plan, work: Callable[[Plan], int]) -> int:
        """Calls ``work``."""
        return work(plan)
