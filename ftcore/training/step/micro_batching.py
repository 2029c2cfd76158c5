"""Micro-batches in several passes forward and backward, of at most so many tokens at a time.

Activations are then those of a pass and not of the batch: sft lora of smollm2-135m, 1,418 tokens in 8 rows, float32,
Zen 3, peaked at 2.09 GB in two passes one after the other and at 2.84 in one. On one thread a step took 13.1 CPU s
instead of 13.8; four passes took 14.7. On several threads passes are done side by side
(`ftcore.training.parallel.cpu_threads.pool`): 1,657 tokens in two passes at a time peaked at 2.82 GB and took 0.83 of
the CPU time of passes on both threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftcore.resources.hardware import NUM_WORKERS
from ftcore.training.batching.collators import Batch
from ftcore.training.parallel.cpu_threads.pool import FEWEST

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

ROWS = "rows"
"""A batch's rows as the dataset gave them, kept beside it so that it can be taken apart."""

REGROUPED = "regrouped"
"""Whether these rows are others than the batch's own."""

EVEN = 0.62
"""Largest share of a step's work that one of two may have: above it both together are done sooner, who make about 1.6
times the tokens a second of one. A step of `rm` of which one had 0.72 took 12.0 s (15 CPU s)."""

UNCUT = 0.55
"""The same where the row is cut in two halves instead (`ftcore.training.parallel.cpu_threads.split_forward`). Six steps
of `rm` whose pairs were more unlike, by turns: cut 0.85 of the CPU time and 0.86 of the time of all threads together;
0.59 cut instead of not: 0.85 of the time."""

Split = list[list[int]]
"""Of each pass its rows, by their place in the batch."""


def micro_batch_tokens(trainer: TrainingContext) -> int | None:
    """Tokens of a pass, at most; None where batches stay whole.

    Processes that average gradients do so in each backward pass, and would wait for each other where one has more of
    them than another; DeepSpeed takes its step in the backward pass. Padded batches have the shape of their longest
    row, by which their tokens would not be counted.
    """
    alone = trainer.args.world_size == 1 and not trainer.is_deepspeed_enabled
    if not (alone and trainer.loss_is_additive and getattr(trainer.scorer, "packed", False)):
        return None
    return trainer.plan.training.pass_tokens(trainer.args.device.type == "cpu")


def split_micro_batches(trainer: TrainingContext, batch: Batch, most: int | None) -> Split:
    """How a batch's rows are divided into passes; nothing but rows, options and threads decides it, so that a resume
    does alike.

    Args:
        trainer: whose batch it is.
        batch: with its rows.
        most: rows of a pass, at most; None for any number.
    """
    rows, limit = batch[ROWS], micro_batch_tokens(trainer)
    most = most or len(rows)
    costs = [] if limit is None else [_cost(trainer, row) for row in rows]
    sizes = [tokens for tokens, _ in costs]
    if limit is not None and trainer.side_by_side and len(rows) > 1 and sum(sizes) >= 2 * FEWEST:
        whole = trainer.data_collator(rows) if REGROUPED in batch else batch
        tokens, loads = whole["input_ids"].numel(), _apart(trainer, whole, [work for _, work in costs])
        found = halved(sizes, limit, most, tokens, loads)
        team = getattr(trainer.scorer, "team", None)
        most_of_all = EVEN if team is None or not team.serves else UNCUT
        if even([sum(loads[row] for row in some) for some in found], most_of_all):
            return found
    if limit is None or batch["input_ids"].numel() <= limit:
        return [list(range(start, min(start + most, len(rows)))) for start in range(0, len(rows), most or 1)]
    return balance(sizes, limit, most)


def regrouped(trainer: TrainingContext, batches: list[Batch]) -> list[Batch]:
    """Micro-batches of a step; where passes are done side by side, rows of small ones lie in the first of them.

    One row at a time, accumulated, is then done two rows at a time. Each of the batches stays what it is but for
    the rows that are kept beside it.
    """
    limit = micro_batch_tokens(trainer)
    if limit is None or not trainer.side_by_side or len(batches) < NUM_WORKERS:
        return batches
    found: list[Batch] = []
    first, tokens = 0, 0
    for batch in batches:
        size = batch["input_ids"].numel()
        if found and tokens + size <= limit:
            found[first] = {**found[first], ROWS: [*found[first][ROWS], *batch[ROWS]], REGROUPED: True}
            found.append({**batch, ROWS: [], REGROUPED: True})
            tokens += size
        else:
            first, tokens = len(found), size
            found.append(batch)
    return found


def halved(
    sizes: Sequence[int], limit: int, most: int, tokens: int | None = None, loads: Sequence[float] | None = None
) -> Split:
    """Rows as passes that are done two at a time: both members have as much to do, and the passes of each are alike.

    Args:
        sizes: tokens of each row.
        limit: tokens of the passes at a time, unless rows are longer.
        most: rows of the passes at a time.
        tokens: of all rows, where they are fewer than their sum.
        loads: work of each row, where it is not as its tokens.
    """
    loads = sizes if loads is None else loads
    rounds = max(1, -(-(sum(sizes) if tokens is None else tokens) // limit), -(-len(sizes) // most))
    count = min(len(sizes), NUM_WORKERS * rounds, max(NUM_WORKERS, sum(sizes) // FEWEST))
    # first for each member, then for each pass: passes alike may still leave one member with more than the other
    members = sorted(_shared_out(range(len(sizes)), NUM_WORKERS, loads), key=len, reverse=True)
    shares = [-(-(count - member) // NUM_WORKERS) for member in range(NUM_WORKERS)]
    return _in_turn([_shared_out(rows, share, loads) for rows, share in zip(members, shares, strict=False)], loads)


def _shared_out(rows: Iterable[int], count: int, loads: Sequence[float]) -> Split:
    """Rows for so many, or for each row one: of like work, the largest first."""
    found: Split = [[] for _ in range(count)]
    filled = [0.0] * count
    for row in sorted(rows, key=lambda row: (-loads[row], row)):
        into = min(range(count), key=lambda one: (filled[one], one))
        found[into].append(row)
        filled[into] += loads[row]
    order = sorted(range(count), key=lambda one: (-filled[one], one))
    return [sorted(found[one]) for one in order if found[one]]


def _in_turn(mine: Sequence[Split], loads: Sequence[float]) -> Split:
    """The members' passes as one list, of which whoever is free takes the next and so his own."""
    waiting = sorted((list(some) for some in mine if some), key=lambda some: -sum(loads[row] for row in some[0]))
    done = [0.0] * len(waiting)
    found: Split = []
    while any(waiting):
        member = min((one for one, some in enumerate(waiting) if some), key=lambda one: (done[one], one))
        found.append(waiting[member].pop(0))
        done[member] += sum(loads[row] for row in found[-1])
    return found


def even(sizes: Sequence[float], share: float) -> bool:
    """Whether of passes of so much work, dealt out in their order to whoever is free, nobody gets more than that."""
    loads = [0.0] * NUM_WORKERS
    for size in sizes:
        loads[loads.index(min(loads))] += size
    return max(loads) <= share * sum(sizes)


def balance(sizes: Sequence[int], limit: int, most: int) -> Split:
    """Rows in their order as the fewest passes that the limits allow, the largest of them as small as can be.

    Args:
        sizes: tokens of each row; one that is over the limit is a pass by itself.
        limit: tokens of a pass.
        most: rows of a pass.
    """
    found, low, high = _filled(sizes, limit, most), 1, limit
    while low < high:  # the least limit with as few passes
        middle = (low + high) // 2
        tried = _filled(sizes, middle, most)
        if len(tried) == len(found):
            found, high = tried, middle
        else:
            low = middle + 1
    return found


def _filled(sizes: Sequence[int], limit: int, most: int) -> Split:
    """As many rows to a pass as fit."""
    starts, tokens = [0], 0
    for row, size in enumerate(sizes):
        if row > starts[-1] and (tokens + size > limit or row - starts[-1] == most):
            starts.append(row)
            tokens = 0
        tokens += size
    return [list(range(*ends)) for ends in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def _cost(trainer: TrainingContext, row: Mapping[str, Any]) -> tuple[int, float]:
    """What a row adds to ``input_ids``, and its work by itself, which is asked for where passes go side by side.

    Of pairs the collator knows whether they share their prompt.
    """
    work = trainer.work if trainer.side_by_side else None
    if work is None and "input_ids" in row:
        return len(row["input_ids"]), float(len(row["input_ids"]))
    batch = trainer.data_collator([row])
    tokens = int(batch["input_ids"].numel())
    return tokens, float(tokens) if work is None else float(work(batch).sum())


def _apart(trainer: TrainingContext, whole: Batch, loads: Sequence[float]) -> list[float]:
    """Work of each row without what it shares with all others, which is done once in each pass: a system prompt."""
    work = trainer.work
    if work is None:
        return list(loads)
    shared = (sum(loads) - float(work(whole).sum())) / (len(loads) - 1)
    return [max(0.0, load - shared) for load in loads]


def parts(trainer: TrainingContext, batch: Batch, most: int | None = None) -> list[Batch]:
    """The passes of a batch, as batches without rows of their own; one that has no rows is one pass."""
    return (
        [part(trainer, batch, rows) for rows in split_micro_batches(trainer, batch, most)] if ROWS in batch else [batch]
    )


def part(trainer: TrainingContext, batch: Batch, taken: Sequence[int]) -> Batch:
    """These rows of a batch as one of their own, without its rows."""
    rows = [batch[ROWS][row] for row in taken]
    if len(rows) == len(batch[ROWS]) and REGROUPED not in batch:
        return {name: value for name, value in batch.items() if name != ROWS}
    if "images" not in batch:
        return trainer.data_collator(rows)
    images = [batch["images"][row] for row in taken]  # read and scaled once
    bare = [{name: value for name, value in row.items() if name != "images"} for row in rows]
    found = trainer.data_collator(bare)
    return found | {"images": images} if any(images) else found
