"""Oracles that call thinking by another name than ``enable_thinking``, or need to be told that this is training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from conversations import Case
from harness import render

SHARED = Path("/work/shared/oracle/templates")


def _given(case: Case, **variables: Any) -> Case:
    return replace(case, variables=case.variables | variables)


def hy3(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Hunyuan 3: ``reasoning_effort``; with ``is_training`` the last answer ends as all others do."""
    source = (SHARED / name).read_text(encoding="utf-8")
    effort = "high" if case.variables.get("enable_thinking") else "no_think"
    preserved = {"preserved_thinking": True} if case.variables.get("preserve_thinking") else {}
    case = _given(case, reasoning_effort=effort, **preserved)
    return render(source, _given(case, is_training=True), tokens)[0], render(source, case, tokens, prompt=True)[0]


def seed(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """Seed OSS: ``thinking_budget``, 0 for none."""
    source = (SHARED / name).read_text(encoding="utf-8")
    if case.variables.get("enable_thinking") is False:
        case = _given(case, thinking_budget=0)
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]
