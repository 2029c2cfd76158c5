"""What part of a model's weights a method reaches, said where it is less than one would think."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ENOUGH = 0.9
"""The share from which on nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Weights of linear layers, the head left out, and of experts: those that could be reached, and those that are.

    Args:
        adaptable: all that an adapter could be put on; 0 where none is.
        adapted: those with an adapter, or trained in full.
        quantizable: all that could be quantised; 0 where nothing is.
        quantized: those that are.
        experts: how many are in experts that transformers keeps as tensors of three dimensions.
        note: why some have no adapter.
        unknown: why nobody knows; nothing else counts then.
    """

    adaptable: int = 0
    adapted: int = 0
    quantizable: int = 0
    quantized: int = 0
    experts: int = 0
    note: str = ""
    unknown: str = ""

    @property
    def enough(self) -> bool:
        """Whether nine tenths are reached."""
        pairs = ((self.adapted, self.adaptable), (self.quantized, self.quantizable))
        return not self.unknown and all(part >= ENOUGH * whole for part, whole in pairs)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; ``adapted`` and ``quantized`` as shares."""
        if self.unknown:
            return {"unknown": self.unknown}
        pairs = {"adapted": (self.adapted, self.adaptable), "quantized": (self.quantized, self.quantizable)}
        return {name: part / whole for name, (part, whole) in pairs.items() if whole} | {"note": self.note}

    def __str__(self) -> str:
        if self.unknown:
            return f"what part of the weights is adapted or quantised is not known: {self.unknown}"
        parts = []
        for what, part, whole in (
            ("have an adapter", self.adapted, self.adaptable),
            ("are quantised", self.quantized, self.quantizable),
        ):
            if whole:
                parts.append(f"{100 * part / whole:.1f}% {what} ({part:,} of {whole:,})")
        line = f"of the weights in linear layers and experts {' and '.join(parts)}"
        if self.experts:
            line += f"; {100 * self.experts / max(self.adaptable, self.quantizable):.1f}% are in experts"
        return f"{line}; {self.note}" if self.note else line
