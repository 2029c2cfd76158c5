"""Generation options of one prompt: those of the run, overridden by the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ftcore.api.option_groups import GenerationOptions
from ftcore.config.binding import bind
from ftcore.config.reader import from_mapping
from ftcore.errors import Problem, UsageError


def override_options(base: GenerationOptions, overrides: Mapping[str, Any] | None) -> GenerationOptions:
    """The options with overridden values; null keeps a value.

    Raises:
        UsageError: naming every setting that is unknown or out of range.
    """
    known = GenerationOptions.model_fields
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    unknown = sorted(given.keys() - known.keys())
    problems = [Problem(f"unknown generation setting {name!r}", hint=f"known: {', '.join(known)}") for name in unknown]
    values = base.model_dump() | {name: value for name, value in given.items() if name in known}
    options, wrong = bind("generation", GenerationOptions, from_mapping(values, ""))
    if options is None or problems:
        raise UsageError([*problems, *wrong])
    assert isinstance(options, GenerationOptions)
    return options
