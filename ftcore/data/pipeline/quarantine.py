"""Writes the bad rows of a run with their problems to ``quarantine.jsonl`` in its output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.data.formats.detection import limited_rows
from ftcore.data.pipeline.loading import eval_specs
from ftcore.data.pipeline.row_sampling import counted
from ftcore.data.row_stats import RowStats
from ftcore.errors import RowError
from ftcore.utils.files import staged_file

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

FILE = "quarantine.jsonl"


def write_quarantine(plan: Plan, accounting: RowStats, folder: Path) -> str:
    """Writes the bad rows of all datasets. Without bad rows, the file of an earlier run is removed.

    The datasets are read again, because memory does not hold the rows.

    Args:
        plan: the plan that the counts belong to.
        accounting: the row counts.
        folder: the output folder of the run.

    Returns:
        A line for the terminal; empty without bad rows.
    """
    path, count = folder / FILE, 0
    if plan.data.on_bad_row != "quarantine":
        return ""
    rows = _bad_rows(plan, accounting)
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        return ""
    with staged_file(path) as draft, draft.open("w", encoding="utf-8") as file:
        for row in chain([first], rows):
            # JSON escapes preserve unpaired surrogates, which UTF-8 cannot encode.
            file.write(json.dumps(row, default=repr) + "\n")
            count += 1
    return f"{count:,} bad row{'s' * (count != 1)} written to {path}"


def _bad_rows(plan: Plan, accounting: RowStats) -> Iterator[dict[str, Any]]:
    specs = (*plan.datasets, *eval_specs(plan))
    for spec, counts in zip(specs, (*accounting.train, *accounting.eval), strict=True):
        problems = {problem.where: problem for problem in counts.bad}
        for place, row, _ in counted(limited_rows(spec, plan) if problems else ()):
            if problem := problems.get(str(place)):
                raw = row.value if isinstance(row, RowError) else dict(row)
                yield {
                    "dataset": spec.name,
                    "source": problem.where,
                    "reason": problem.message,
                    "fix": problem.hint,
                    "row": raw,
                }
