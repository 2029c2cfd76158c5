"""The rows that are trained on: those that both programs turn into the same tokens, and a typical batch of them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import Any

from programs import HERE, Setting, call, flat
from rows import SHARED, Work

DRAWS = 2000
"""Batches that a typical one is chosen from."""


OPENING = 64
"""Tokens of a row that are kept, to see which all rows begin with."""


@dataclass(frozen=True)
class Agreed:
    """A row that both programs encode alike.

    Args:
        number: of the row in its file.
        lengths: tokens of each of its sequences; a preference has two.
        trained: how many of them have a label.
        opening: its first tokens, at most `OPENING`.
    """

    number: int
    lengths: tuple[int, ...]
    trained: tuple[int, ...]
    opening: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """All its tokens."""
        return sum(self.lengths)


def read_rows(folder: Path, name: str) -> tuple[list[Any], dict[str, Any]]:
    """All rows of a dataset, and its entry in ``dataset_info.json``."""
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    text = (folder / entry["file_name"]).read_text(encoding="utf-8")
    if entry["file_name"].endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line.strip()], entry
    return json.loads(text), entry


def write_rows(rows: Sequence[Any], entry: dict[str, Any], folder: Path) -> Path:
    """These rows as the dataset ``rows`` of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(list(rows)), encoding="utf-8")
    described = {"rows": entry | {"file_name": "rows.json"}}
    (folder / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def agreeing(setting: Setting, work: Work, data: Path, folder: Path) -> tuple[list[Agreed], str]:
    """The rows of a work's dataset that ft and LLaMA-Factory encode alike, and a line that says how many do not.

    Raises:
        FailedError: a program cannot read them.
    """
    rows, entry = read_rows(data, work.data)
    stage = "rm" if work.stage == "dpo" else work.stage
    folder = folder / f"{work.data}-{_key(rows, stage, setting)}"
    if not (folder / "llamafactory.jsonl").is_file():
        write_rows(rows, entry, folder)
        options = flat(setting, work, None, folder) | {"stage": stage, "cutoff_len": 8192}
        options = {name: value for name, value in options.items() if not name.startswith("pref_")}
        for program, script in (("ft", "encode_ft.py"), ("llamafactory", "peers/encode_llamafactory.py")):
            file, out = folder / f"{program}.json", folder / f"{program}.jsonl"
            file.write_text(json.dumps(options | {"output_dir": str(folder / "out")}), encoding="utf-8")
            call(setting, program, [setting.python(program), HERE / script, file, out], folder)
    ours, theirs = (_read(folder / f"{program}.jsonl") for program in ("ft", "llamafactory"))
    alike = [number for number in sorted(ours) if ours[number] == theirs.get(number)]
    agreed = [_agreed(number, ours[number]) for number in alike]
    fitting = [row for row in agreed if max(row.lengths) <= SHARED["cutoff_len"]]
    told = f"{len(rows)} rows, {len(rows) - len(alike)} encoded differently or left out, "
    return fitting, told + f"{len(alike) - len(fitting)} longer than {SHARED['cutoff_len']} tokens"


def typical(rows: Sequence[Agreed], batch: int, batches: int = 1, packs: int | None = None) -> list[Agreed]:
    """The batches, of `DRAWS` drawn with seed 0, that are most like the mean one: in tokens, and in tokens padded.

    Several have no row in common. With ``packs`` it is the batch that fills so many packs best, so that the packing
    peer has the least padding.

    Raises:
        ValueError: no batch fits the packs, or there are too few rows.
    """
    draw = random.Random(0)
    drawn = [draw.sample(list(rows), batch) for _ in range(DRAWS)]
    if packs is not None:
        fitting = [one for one in drawn if bins([row.tokens for row in one]) <= packs]
        if not fitting:
            raise ValueError(f"no {batch} rows of {DRAWS} draws fit {packs} packs")
        return max(fitting, key=lambda one: sum(row.tokens for row in one))
    real, padded = mean(_real(one) for one in drawn), mean(_padded(one) for one in drawn)
    found: dict[int, Agreed] = {}
    for one in sorted(drawn, key=lambda one: abs(_real(one) / real - 1) + abs(_padded(one) / padded - 1)):
        if len(found) < batch * batches and not any(row.number in found for row in one):
            found |= {row.number: row for row in one}
    if len(found) < batch * batches:
        raise ValueError(f"{len(rows)} rows make no {batches} batches of {batch}")
    return list(found.values())


def shortest(rows: Sequence[Agreed], batch: int) -> list[Agreed]:
    """The batch of which a step takes least."""
    return sorted(rows, key=lambda row: max(row.lengths))[:batch]


def bins(lengths: Sequence[int], size: int = SHARED["cutoff_len"]) -> int:
    """Packs that best-fit decreasing makes of sequences."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting, key=lambda index: room[index])] -= length
        else:
            room.append(size - length)
    return len(room)


def _real(batch: Sequence[Agreed]) -> int:
    return sum(row.tokens for row in batch)


def _padded(batch: Sequence[Agreed]) -> int:
    lengths = [length for row in batch for length in row.lengths]
    return max(lengths) * len(lengths)


def _agreed(number: int, sides: list[Any]) -> Agreed:
    lengths, trained = tuple(len(ids) for ids, _ in sides), tuple(sum(labels) for _, labels in sides)
    return Agreed(number, lengths, trained, tuple(sides[0][0][:OPENING]))


def common(rows: Sequence[Agreed]) -> int:
    """Tokens that all rows begin with, of `OPENING`."""
    alike = (len(set(tokens)) == 1 for tokens in zip(*(row.opening for row in rows), strict=False))
    return sum(takewhile(bool, alike))


def _read(file: Path) -> dict[int, list[Any]]:
    with file.open(encoding="utf-8") as stream:
        return dict(json.loads(line) for line in stream)


def _key(rows: list[Any], stage: str, setting: Setting) -> str:
    names = ("encode_ft.py", "peers/encode_llamafactory.py")
    parts = [json.dumps(rows), stage, (setting.model / "tokenizer_config.json").read_text("utf-8")]
    parts += [(HERE / name).read_text("utf-8") for name in names]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
