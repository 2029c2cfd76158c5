"""Launchers: they start the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable

from ft_plugins.launchers.local import Local
from ftcore import hookimpl
from ftcore.api.components import Launcher


@hookimpl
def ft_launchers() -> Iterable[Launcher]:
    return [Local(name="local", summary="in this process, on one device", default=True)]
