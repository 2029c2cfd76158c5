"""The border: a plan goes in, heavy things are loaded, and a run's files come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.plan import Plan


@dataclass(kw_only=True)
class Run:
    """The state of one run, handed to the stage."""

    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    """The method has been applied: what is to be trained requires gradients."""
    data: Any
    """What the stage's ``datasets`` returned."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run."""

    output_dir: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
