"""Works, measured by turns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from data import agreeing, common, read_rows, shortest, typical, write_rows
from measures import CLOCKS, TOLERANCE, Measured, differences, ratios, read
from programs import HERE, FailedError, Setting, call, train, train_together
from rows import Peer, Work
from utilisation import useful

Result = dict[str, Any]
MANY, FEW = 20_000, 2_000
"""Rows that are preprocessed, and with ``--quick``."""
PACKS_LONG = 40
"""Texts of the pt work: far more than its packs hold."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One call of the command.

    Args:
        setting: where everything is.
        data: the folder of the datasets.
        out: where results go.
        turns: of each work; None for its own number.
        steps: of each work that takes several; None for its own number.
        quick: whether to try that everything runs: the shortest rows, two steps, few rows to preprocess.
        say: prints a line.
    """

    setting: Setting
    data: Path
    out: Path
    turns: int | None
    steps: int | None
    quick: bool
    say: Callable[[str], None]

    def turns_of(self, work: Work) -> int:
        """How often a work is done."""
        return self.turns or work.turns


def compare(bench: Bench, work: Work) -> list[Result]:
    """All rows of a work; what goes wrong stands in them."""
    if bench.steps and work.steps > 1:
        work = replace(work, steps=bench.steps, batches=min(work.batches, bench.steps))
    try:
        return KINDS[work.kind](bench, work)
    except (FailedError, ValueError) as error:
        names = [peer.name for peer in work.peers] or ["the machine's best matrix products"]
        return [{"work": work.title, "against": name, "error": str(error)} for name in names]


def prepare(bench: Bench, work: Work) -> tuple[Path, dict[str, Any]]:
    """The folder of the rows, and what is known of them.

    Raises:
        FailedError, ValueError: there are none that both programs encode alike.
    """
    rows, entry = read_rows(bench.data, work.data)
    folder = bench.out / "data" / work.name
    if work.texts:
        return write_rows(rows[:PACKS_LONG], entry, folder), {"rows": PACKS_LONG}
    agreed, told = agreeing(bench.setting, work, bench.data, bench.out / "encoded")
    if bench.quick:
        chosen = shortest(agreed, work.batches * work.batch)
    else:
        chosen = typical(agreed, work.batch, work.batches, work.packs)
    known = {
        "rows": [row.number for row in chosen],
        "lengths": [length for row in chosen for length in row.lengths],
        "labels": sum(sum(row.trained) for row in chosen),
        "common": common(chosen),
        "told": told,
    }
    tokens, steps = sum(known["lengths"]), f"{work.batches} steps have" if work.batches > 1 else "a step has"
    bench.say(f"  {told}; {steps} {tokens:,} tokens, {known['labels']:,} with a label")
    return write_rows([rows[row.number] for row in chosen], entry, folder), known


Pair = tuple[list[Measured], list[Measured]]


def by_turns(bench: Bench, work: Work, data: Path) -> dict[str, Pair | str]:
    """Every peer beside ft, step by step in turn: ft's measurements and the peer's, or why there are none.

    Raises:
        FailedError: ft fails.
    """
    found: dict[str, Pair | str] = {}
    for turn in range(bench.turns_of(work)):
        for number, peer in enumerate(work.peers):
            so_far = found.get(peer.name, ([], []))
            if isinstance(so_far, str):
                continue
            ours, theirs = so_far
            begun = time.monotonic()
            events, own = train_together(
                bench.setting, work, peer, data, bench.out / work.name / str(turn) / str(number)
            )
            one = _measured(own)
            try:
                theirs.append(_measured(events))
                ours.append(one)
                found[peer.name] = (ours, theirs)
            except (FailedError, ValueError) as error:
                found[peer.name] = str(error)
            bench.say(f"  turn {turn + 1}, {peer.name} and ft: {time.monotonic() - begun:.0f} s")
    return found


def _measured(events: Path | FailedError) -> Measured:
    if isinstance(events, FailedError):
        raise events
    return read(events)


def compare_steps(bench: Bench, work: Work) -> list[Result]:
    """Seconds of steps, or of epochs."""
    data, known = prepare(bench, work)
    found = by_turns(bench, work, data)
    return [{"known": known} | result for peer in work.peers for result in held_against(work, peer, found[peer.name])]


def held_against(work: Work, peer: Peer, pair: Pair | str) -> list[Result]:
    """A row for each span; without any time where the work was not the same."""
    spans: Mapping[str, int | None] = work.spans or {"step": None}
    results: list[Result] = []
    for span, epochs in spans.items():
        result: Result = {"work": work.title, "against": peer.name, "span": span, "target": peer.targets.get(span)}
        results.append(result)
        if isinstance(pair, str):
            result["error"] = pair
            continue
        ours, theirs = pair
        off = max(
            (differences(our, their, peer.scale) for our, their in zip(ours, theirs, strict=True)),
            key=lambda found: max(found.values()),
        )
        result |= {"differences": off, "ft": [vars(one) for one in ours], "peer": [vars(one) for one in theirs]}
        if max(off.values()) > TOLERANCE:
            result["error"] = not_the_same(ours[0], theirs[0], off)
            continue
        result |= {clock: ratios(ours, theirs, clock, epochs, work.batches) for clock in CLOCKS}
        result["memory"] = median(our.peak / their.peak for our, their in zip(ours, theirs, strict=True))
        result["memory_target"] = peer.memory
    return results


def not_the_same(ours: Measured, theirs: Measured, off: Mapping[str, float]) -> str:
    """The first step's numbers, where they differ too much for a speed to mean anything."""
    told = f"loss {ours.losses[0]:.6g} and {theirs.losses[0]:.6g}, norm {ours.norms[0]:.6g} and {theirs.norms[0]:.6g}"
    return f"not the same work: ft's and the peer's first step have {told}; they differ by {max(off.values()):.1e}"


def compare_start(bench: Bench, work: Work) -> list[Result]:
    """CPU and wall seconds from the shell to the first step; what can be cached has been, by a turn before."""
    data, _ = prepare(bench, work)
    (peer,) = work.peers
    found: dict[str, list[tuple[float, float]]] = {"ft": [], peer.name: []}
    for turn in range(bench.turns_of(work) + 1):
        for side in (peer, None):
            name = side.name if side else "ft"
            folder = bench.out / work.name / (peer.program if side else "ft")
            kept = bench.out / work.name / f"kept-{peer.program if side else 'ft'}"
            seconds = until_first_step(bench, work, side, data, folder, kept)
            bench.say(f"  turn {turn}, {name}: {seconds[0]:.1f} CPU s")
            if turn:
                found[name].append(seconds)
    return [_pairwise(work, peer, "start", found["ft"], found[peer.name])]


def until_first_step(
    bench: Bench, work: Work, peer: Peer | None, data: Path, folder: Path, kept: Path
) -> tuple[float, float]:
    """CPU and wall seconds from the process's start to its first step, with caches in ``kept``."""
    begun = time.time()
    caches = {"FT_CACHE": str(kept), "HF_DATASETS_CACHE": str(kept / "datasets")}
    one = read(train(bench.setting, work, peer, data, folder, caches))
    return one.start, one.begun - begun


def _pairwise(
    work: Work, peer: Peer, span: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]]
) -> Result:
    result: Result = {"work": work.title, "against": peer.name, "span": span, "target": peer.targets[span]}
    for place, clock in enumerate(CLOCKS):
        result[clock] = [their[place] / our[place] for our, their in zip(ours, theirs, strict=True)]
    return result | {"ft": ours, "peer": theirs}


def compare_preprocessing(bench: Bench, work: Work) -> list[Result]:
    """What `MANY` rows take more than a few until the first step, nothing being cached."""
    rows, entry = read_rows(bench.data, work.data)
    rows = sorted(rows, key=lambda row: len(json.dumps(row)))  # the first one is trained on
    count = FEW if bench.quick else MANY
    many = [
        row | {"instruction": f"{number}. {row['instruction']}"}
        for number, row in enumerate(rows[index % len(rows)] for index in range(count))
    ]
    folder = bench.out / "data" / work.name
    sets = {"few": write_rows(many[:8], entry, folder / "few"), "many": write_rows(many, entry, folder / "many")}
    (peer,) = work.peers
    found: dict[str, list[tuple[float, float]]] = {"ft": [], peer.name: []}
    for turn in range(bench.turns_of(work)):
        for side in (peer, None):
            name, seconds = side.name if side else "ft", {}
            for size, data in sets.items():
                place = bench.out / work.name / str(turn) / (peer.program if side else "ft") / size
                seconds[size] = until_first_step(bench, work, side, data, place, place / "kept")
            found[name].append(tuple(more - less for more, less in zip(seconds["many"], seconds["few"], strict=True)))
            bench.say(f"  turn {turn + 1}, {name}: {found[name][-1][0]:.1f} CPU s for {count:,} rows")
    return [_pairwise(work, peer, "rows", found["ft"], found[peer.name])]


def compare_utilisation(bench: Bench, work: Work) -> list[Result]:
    """Useful FLOPs per second of each step after the first, over those of the machine's best matrix products."""
    data, known = prepare(bench, work)
    config = bench.setting.model / "config.json"
    described = json.loads(config.read_text(encoding="utf-8"))
    flops = useful(described, known["lengths"], known["labels"], rank=8, common=known["common"])
    shares: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
    measured = []
    for turn in range(bench.turns_of(work)):
        folder = bench.out / work.name / str(turn)
        one = read(train(bench.setting, work, None, data, folder / "ft"))
        script = [bench.setting.python("ft"), HERE / "utilisation.py", sum(known["lengths"]), known["labels"], config]
        roof = json.loads(call(bench.setting, "ft", script, folder).splitlines()[-1])
        for clock in CLOCKS:
            possible = roof["flops"] / roof[clock]
            shares[clock] += [flops / seconds / possible for seconds in one.each_step(clock)]
        measured.append({"ft": vars(one), "roof": roof})
        bench.say(f"  turn {turn + 1}: {median(shares['cpu']):.2f} of {roof['flops'] / roof['cpu'] / 1e9:.0f} GF/s")
    against = "the machine's best matrix products"
    return [
        {"work": work.title, "against": against, "span": "useful FLOPs", "target": 0.6, "known": known, **shares}
        | {"flops": flops, "turns": measured}
    ]


KINDS: Mapping[str, Callable[[Bench, Work], list[Result]]] = {
    "steps": compare_steps,
    "start": compare_start,
    "preprocessing": compare_preprocessing,
    "utilisation": compare_utilisation,
}
