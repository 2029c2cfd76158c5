"""Counts of rows and tokens by outcome: every dropped row and token is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ftcore.api.option_groups import DataOptions
from ftcore.api.samples import Place
from ftcore.data.preprocessing.prepare import AnyPrepared
from ftcore.errors import Problem, UsageError

T = TypeVar("T")
SHOWN = 20
"""Number of bad rows that an error shows, and of places that the manifest lists."""
_LISTED = 5


@dataclass(kw_only=True)
class RowCounts:
    """The row and token counts of one dataset.

    ``rows == kept + dropped + untrainable``, and ``tokens == used + cut + left``. A row that ``num_samples`` draws
    several times is counted each time.

    Args:
        name: the dataset, as written in the configuration.
        rows: rows read.
        of: rows of the dataset before sampling; 0 without ``num_samples``.
        kept: rows used for training or evaluation.
        truncated: kept rows that were longer than ``cutoff_len``.
        bad: the problems of rows that could not be read.
        untrainable: reason -> places of rows without tokens to train on.
        thoughtless: trained answers whose reasoning the template or ``enable_thinking`` leaves out.
        thoughtless_rows: rows with such answers.
        thoughtless_places: places of the first such rows.
        tokens: tokens of all rows that could be read.
        used: tokens of kept rows.
        cut: tokens of kept rows beyond ``cutoff_len``.
        trained: target tokens of the loss.
    """

    name: str
    rows: int = 0
    of: int = 0
    kept: int = 0
    truncated: int = 0
    bad: list[Problem] = field(default_factory=list)
    untrainable: dict[str, list[Place]] = field(default_factory=dict)
    thoughtless: int = 0
    thoughtless_rows: int = 0
    thoughtless_places: list[Place] = field(default_factory=list)
    tokens: int = 0
    used: int = 0
    cut: int = 0
    trained: int = 0

    @property
    def left(self) -> int:
        """Tokens of untrainable rows."""
        return self.tokens - self.used - self.cut

    @property
    def left_out(self) -> int:
        """Untrainable rows."""
        return sum(map(len, self.untrainable.values()))

    def add_bad(self, problem: Problem, times: int = 1) -> None:
        """Adds a row that could not be read, ``times`` times."""
        self.rows += times
        self.bad += [problem] * times

    def add(self, place: Place, row: AnyPrepared, times: int = 1) -> None:
        """Adds a row that could be read, ``times`` times."""
        self.rows += times
        tokens = row.tokens
        self.tokens += times * tokens
        if row.untrainable:
            self.untrainable.setdefault(row.untrainable, []).extend([place] * times)
            return
        self.kept += times
        self.truncated += times * (row.used < tokens)
        self.used += times * row.used
        self.cut += times * (tokens - row.used)
        self.trained += times * row.trained
        if thoughtless := row.thoughtless:
            self.thoughtless += times * thoughtless
            self.thoughtless_rows += 1
            self.thoughtless_places = [*self.thoughtless_places, place][:SHOWN]

    def merge(self, more: RowCounts) -> None:
        """Adds the counts of further rows."""
        for field_ in fields(self):
            if field_.type == "int":
                setattr(self, field_.name, getattr(self, field_.name) + getattr(more, field_.name))
        self.bad += more.bad
        self.thoughtless_places = [*self.thoughtless_places, *more.thoughtless_places][:SHOWN]
        for why, places in more.untrainable.items():
            self.untrainable.setdefault(why, []).extend(places)

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts for the manifest, with the first places of bad and untrainable rows."""
        return {
            "rows": self.rows,
            **({"drawn_of": self.of} if self.of else {}),
            "kept": self.kept,
            "truncated": self.truncated,
            "dropped": len(self.bad),
            "dropped_rows": [str(problem) for problem in _once(self.bad)[:SHOWN]],
            "untrainable": {reason: len(places) for reason, places in self.untrainable.items()},
            "untrainable_rows": {
                reason: [str(place) for place in _once(places)[:SHOWN]] for reason, places in self.untrainable.items()
            },
            "without_thought": self.thoughtless,
            "without_thought_rows": [str(place) for place in self.thoughtless_places],
            "tokens": self.tokens,
            "used_tokens": self.used,
            "cut_tokens": self.cut,
            "trained_tokens": self.trained,
            "trained_share": round(self.trained / self.used, 6) if self.used else 0.0,
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        share = f" ({self.trained / self.used:.1%})" if self.used else ""
        trained = f"{self.used:,} tokens, {self.trained:,} trained{share}"
        head = f"{self.name}: {self.kept:,} of {self.rows:,} rows, {trained}"
        lines = [head]
        if self.of:
            lines.append(f"  {self.rows:,} rows drawn of {self.of:,}")
        if self.truncated:
            lines.append(f"  truncated: {self.truncated:,} rows, {self.cut:,} tokens beyond cutoff_len")
        if self.bad:
            lines.append(f"  dropped: {len(self.bad):,} rows that cannot be read")
            lines += _first(self.bad)
        for reason, places in self.untrainable.items():
            lines.append(f"  untrainable: {len(places):,} rows, {reason}")
            lines += _first(places)
        if self.thoughtless:
            many = (
                "answers are trained without their reasoning"
                if self.thoughtless > 1
                else "answer is trained without its reasoning"
            )
            lines.append(f"  {self.thoughtless:,} {many}, rows: {self.thoughtless_rows:,}")
            lines += [f"    {place}" for place in self.thoughtless_places[:_LISTED]]
            more = self.thoughtless_rows - _LISTED
            lines += [f"    and {more:,} more"] if more > 0 else []
        return lines


def _once(found: Sequence[T]) -> list[T]:
    """The items without duplicates: a row that was drawn several times is listed once."""
    return list(dict.fromkeys(found))


def _first(found: Sequence[object]) -> list[str]:
    once = _once(found)
    more = [f"    and {len(once) - _LISTED:,} more"] if len(once) > _LISTED else []
    return [f"    {one}" for one in once[:_LISTED]] + more


@dataclass(frozen=True)
class RowStats:
    """All datasets of a run."""

    train: tuple[RowCounts, ...] = ()
    eval: tuple[RowCounts, ...] = ()
    split_off: int = 0
    """Rows that ``val_size`` moved from training to evaluation."""
    notes: tuple[str, ...] = ()
    """Lines about mixing and packing."""

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: dataset -> counts."""
        return {
            "train": {counts.name: counts.as_dict() for counts in self.train},
            "eval": {counts.name: counts.as_dict() for counts in self.eval},
            "split_off": self.split_off,
            "notes": list(self.notes),
        }

    def summary(self) -> str:
        """For the terminal."""
        lines = [line for counts in self.train for line in counts.lines()]
        lines += [f"evaluation: {line}" for counts in self.eval for line in counts.lines()]
        if self.split_off:
            lines.append(f"evaluation: {self.split_off:,} rows split off by val_size")
        return "\n".join([*lines, *self.notes])


def bad_rows(counts: Sequence[RowCounts], options: DataOptions) -> UsageError | None:
    """The bad rows that the options do not allow, as one error that shows the first ones and counts all."""
    if options.on_bad_row == "fail":
        hint = "correct the rows, or set on_bad_row: skip to leave them out"
        return _refused(counts, hint)
    if options.max_bad_rows is None:
        return None
    most = options.max_bad_rows
    over = [one for one in counts if len(one.bad) > (most if most >= 1 or most == 0 else most * one.rows)]
    named = ", ".join(f"{len(one.bad):,} of {one.rows:,} in {one.name!r}" for one in over)
    return _refused(over, f"max_bad_rows is {most:g}, and there are {named}")


def _refused(counts: Sequence[RowCounts], hint: str) -> UsageError | None:
    problems = [problem for one in counts for problem in _once(one.bad)]
    if not problems:
        return None
    many = f"{len(problems):,} bad rows" if len(problems) > 1 else "1 bad row"
    shown = f"; the first {SHOWN} are shown" if len(problems) > SHOWN else ""
    return UsageError([*problems[:SHOWN], Problem(many + shown, hint=hint)])
