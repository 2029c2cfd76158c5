"""Writes each row's tokens as ft makes them, as JSON lines: OPTIONS FILE."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Side = tuple[list[int], list[int]]


def main() -> None:
    """Plans the run and reads its data; nothing is trained."""
    from ftcore.api.plan import Run
    from ftcore.config.planner import make_plan

    plan = make_plan(sys.argv[1])
    state = Run(plan=plan, tokenizer=plan.plugins.hook.ft_load_tokenizer(plan=plan))
    rows = plan.stage.component.datasets(state).train
    sides = SIDES[plan.stage.component.name]
    with Path(sys.argv[2]).open("w", encoding="utf-8") as stream:
        for index in range(len(rows)):
            stream.write(json.dumps([rows.places[index].row - 1, sides(rows[index])]) + "\n")


def _whole(row: Mapping[str, Any]) -> list[Side]:
    return [(row["input_ids"].tolist(), (row["weights"] > 0).astype(int).tolist())]


def _answers(*names: str) -> Callable[[Mapping[str, Any]], list[Side]]:
    def sides(row: Mapping[str, Any]) -> list[Side]:
        prompt = row["prompt_ids"].tolist()
        return [
            (
                prompt + row[f"{name}_ids"].tolist(),
                [0] * len(prompt) + (row[f"{name}_weights"] > 0).astype(int).tolist(),
            )
            for name in names
        ]

    return sides


_PAIR = _answers("chosen", "rejected")
SIDES = {"sft": _whole, "dpo": _PAIR, "rm": _PAIR, "kto": _answers("answer")}

if __name__ == "__main__":
    main()
