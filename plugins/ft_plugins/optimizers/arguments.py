"""transformers' ``optim_args``: further arguments of an optimizer in one string."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def named(text: str | None) -> dict[str, str]:
    """``a=1,b=x`` as a dictionary of texts."""
    pairs = [part.partition("=") for part in (text or "").replace(" ", "").split(",") if part]
    return {name: value for name, _, value in pairs}


def _checked(text: str | None) -> str | None:
    for part in (text or "").replace(" ", "").split(","):
        name, equals, value = part.partition("=")
        if text and not (name and equals and value):
            raise ValueError(f"expected name=value, comma separated, found {part!r}")
    return text


Arguments = Annotated[str | None, AfterValidator(_checked)]
"""The type of an option ``optim_args``."""
