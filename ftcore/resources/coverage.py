"""The share of a model's weights that a method adapts or quantises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ENOUGH = 0.9
"""Minimum share of which no line is printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Numbers of weights in linear layers (without the head) and experts.

    Args:
        adaptable: weights that could have an adapter; 0 if none has.
        adapted: weights with an adapter, or trained in full.
        quantizable: weights that could be quantised; 0 if none is.
        quantized: weights that are quantised.
        experts: weights in experts that transformers stores as 3-D tensors.
        note: why some have no adapter.
        unknown: why the coverage is unknown; the other fields are then without meaning.
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
        """Whether at least nine tenths are covered."""
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
            return f"the share of adapted or quantised weights is unknown: {self.unknown}"
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
