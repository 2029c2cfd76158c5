"""Prepared rows as text: in colours, or with brackets if there are none; preferences side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftcore.api.samples import Place
from ftcore.data.formats.detection import row_problem
from ftcore.data.preprocessing.prepare import Prepared, PreparedFeedback, PreparedPair
from ftcore.data.tokenization.loss_reasons import Reason
from ftcore.errors import RowError

_STYLES = {
    "assistant": "bold green",
    "end-of-turn": "bold magenta",
    "text": "green",
    "user": "blue",
    "system": "cyan",
    "tool": "yellow",
    "history": "dim green",
    "template": "dim",
    "truncated": "red strike",
}
CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
"""Control characters -> visible symbols, so that a data file cannot control the terminal."""
_MANY = re.compile(r"(<\|?[\w|]{3,40}\|?>)\1{3,}")
_NARROW = 60
"""Terminal width below which two answers are not shown side by side."""


class Terminal:
    """Prints rows, with a legend before the first one."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.coloured = self.console.is_terminal and not self.console.no_color
        self._legend_shown = False

    def show(self, place: Place, row: Any, times: int = 1) -> None:
        """Prints one row, or its problem; and the number of times per epoch it is trained, if not once."""
        if not self._legend_shown:
            self.console.print(self._legend())
            self._legend_shown = True
        if isinstance(row, RowError):
            self.console.print(Text(str(row_problem(place, row)), style="red"))
            return
        why = f"  not trained: {row.untrainable}" if row.untrainable else ""
        mark = f"  {'good' if row.good else 'bad'} answer" if isinstance(row, PreparedFeedback) else ""
        drawn = f"  drawn {times:,} times" if times > 1 else ""
        self.console.print(Text(f"── {place}{mark}  {_sizes(row)}{drawn}{why}", style="bold"))
        if isinstance(row, PreparedPair):
            self._pair(row)
        else:
            self.console.print(self._text(row.chat if isinstance(row, PreparedFeedback) else row))

    def _pair(self, row: PreparedPair) -> None:
        """The prompt once, then both answers."""
        starts = row.chosen.labelled.encoded.starts
        shared = int(starts[row.prompt]) if row.prompt < len(starts) else len(row.chosen.rendered.text)
        if shared:
            self.console.print(self._text(row.chosen, 0, shared))
        sides = [("chosen", self._text(row.chosen, shared)), ("rejected", self._text(row.rejected, shared))]
        if self.console.is_terminal and self.console.width >= _NARROW:
            table = Table(expand=True, show_edge=False, pad_edge=False)
            for name, _ in sides:
                table.add_column(name, ratio=1, overflow="fold")
            table.add_row(*(text for _, text in sides))
            self.console.print(table, soft_wrap=False)
            return
        for name, text in sides:
            self.console.print(Text(f"─ {name}", style="bold"))
            self.console.print(text)

    def _text(self, row: Prepared, first: int = 0, last: int | None = None) -> Text:
        """The characters ``first`` to ``last`` of the row's text."""
        if not self.coloured:
            return Text(bracketed(row, first, last).rstrip())
        text = Text()
        for piece, reason, trained in pieces(row, first, last):
            text.append(_folded(piece).translate(CONTROLS), style=_STYLES[reason] + (" underline" if trained else ""))
        text.rstrip()
        return text

    def _legend(self) -> Text:
        if not self.coloured:
            return Text("⟦ ⟧ trained, ⟨ ⟩ cut off at cutoff_len")
        legend = Text("trained: underlined  ")
        for reason, style in _STYLES.items():
            legend.append(reason, style=style).append(" ")
        return legend


def bracketed(row: Prepared, first: int = 0, last: int | None = None) -> str:
    """The row's text without colours: ``⟦trained⟧``, ``⟨cut off at cutoff_len⟩``."""
    parts = []
    for (trained, cut), run in groupby(pieces(row, first, last), key=lambda piece: (piece[2], piece[1] == "truncated")):
        text = _folded("".join(piece for piece, _, _ in run)).translate(CONTROLS)
        parts.append(f"⟨{text}⟩" if cut else f"⟦{text}⟧" if trained else text)
    return "".join(parts)


def _folded(text: str) -> str:
    """Replaces a run of image tokens by one token and their number."""
    return _MANY.sub(lambda found: f"{found[1]}×{len(found[0]) // len(found[1])}", text)


def _sizes(row: Prepared | PreparedPair | PreparedFeedback) -> str:
    # a row that cannot be trained uses no tokens, though they are shown
    cut = row.tokens - row.used
    trained = 0 if row.untrainable else row.trained
    lost = f", {row.thoughtless} without thought" if row.thoughtless else ""
    return f"{row.used} tokens, {trained} trained" + (f", {cut} cut off" if cut else "") + lost


def pieces(row: Prepared, first: int = 0, last: int | None = None) -> Iterator[tuple[str, str, bool]]:
    """The characters ``first`` to ``last`` in runs of one reason: text, reason, whether it is trained."""
    labelled, length = row.labelled, len(row.rendered.text)
    codes = np.full(length, int(Reason.TEMPLATE) * 2, dtype=np.int32)
    of_token = labelled.reasons.astype(np.int32) * 2 + (labelled.weights > 0)
    of_token[row.kept :] = int(Reason.TRUNCATED) * 2
    encoded = labelled.encoded
    for start, end, code in zip(encoded.starts.tolist(), encoded.ends.tolist(), of_token.tolist(), strict=True):
        codes[start:end] = code
    last = length if last is None else last
    bounds = [first, *(np.flatnonzero(np.diff(codes[first:last])) + 1 + first).tolist(), last]
    for start, end in pairwise(bounds):
        if start < end:
            code = int(codes[start])
            yield row.rendered.text[start:end], Reason(code // 2).label, bool(code % 2)
