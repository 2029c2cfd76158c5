"""Splits a batch into micro-batches of at most a number of tokens, to limit the memory of activations.

sft lora of smollm2-135m, 1,418 tokens in 8 rows, float32, Zen 3, one thread: two micro-batches peaked at 2.09 GB and
took 13.1 CPU s per step, one at 2.84 GB and 13.8 CPU s, four took 14.7 CPU s. On several threads micro-batches run
concurrently (`ftcore.training.step.executor`): 1,657 tokens in two of them peaked at 2.82 GB and took 0.83
of the CPU time of micro-batches that use both threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ftcore.training.batching.collators import Batch
from ftcore.training.batching.loaders import ROWS
from ftcore.training.step.executor import MicroBatchExecutor

if TYPE_CHECKING:
    from ftcore.training.context import TrainingContext

REGROUPED = "regrouped"
"""Key that marks a batch whose `ROWS` differ from those its tensors were made of."""

Split = list[list[int]]
"""The rows of each micro-batch, by their index in the batch."""


def micro_batch_tokens(trainer: TrainingContext) -> int | None:
    """Most tokens of a micro-batch; None where batches are not split.

    Batches are split only where the strategy allows it. Padded batches have the shape of their longest row, so counting
    tokens would not limit their memory.
    """
    alone = trainer.strategy.splits_batches
    if not (alone and trainer.loss_is_additive and getattr(trainer.scorer, "packed", False)):
        return None
    return trainer.pass_tokens


def split_micro_batches(trainer: TrainingContext, batch: Batch, most: int | None) -> Split:
    """Splits a batch's rows into micro-batches. Rows, options and threads alone decide, so a resume splits alike.

    Args:
        trainer: of the run.
        batch: with its rows.
        most: most rows of a micro-batch; None for no limit.
    """
    rows, limit, executor = batch[ROWS], micro_batch_tokens(trainer), trainer.executor
    most = most or len(rows)
    costs = [] if limit is None else [_cost(trainer, row) for row in rows]
    sizes = [tokens for tokens, _ in costs]
    if (
        limit is not None
        and trainer.runs_concurrently
        and len(rows) > 1
        and sum(sizes) >= executor.workers * executor.min_tokens
    ):
        whole = trainer.data_collator(rows) if REGROUPED in batch else batch
        tokens, loads = whole["input_ids"].numel(), _unshared_costs(trainer, whole, [work for _, work in costs])
        found = split_concurrent(sizes, limit, most, executor, tokens, loads)
        if is_balanced([sum(loads[row] for row in some) for some in found], executor.max_share, executor.workers):
            return found
    if limit is None or batch["input_ids"].numel() <= limit:
        return [list(range(start, min(start + most, len(rows)))) for start in range(0, len(rows), most or 1)]
    return balance(sizes, limit, most)


def regroup(trainer: TrainingContext, batches: list[Batch]) -> list[Batch]:
    """The batches of a step; with concurrent execution, rows of small batches are moved into the first of them.

    Batches of one row that are accumulated then run two rows at a time. Only the `ROWS` of the batches change.
    """
    limit = micro_batch_tokens(trainer)
    if limit is None or not trainer.runs_concurrently or len(batches) < trainer.executor.workers:
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


def split_concurrent(
    sizes: Sequence[int],
    limit: int,
    most: int,
    executor: MicroBatchExecutor,
    tokens: int | None = None,
    loads: Sequence[float] | None = None,
) -> Split:
    """Splits rows into micro-batches that run at a time: equal work for all workers, and equal micro-batches.

    Args:
        sizes: tokens of each row.
        limit: most tokens of the micro-batches that run at a time, unless a row is longer.
        most: most rows of the micro-batches that run at a time.
        executor: runs them.
        tokens: of all rows, where shared prefixes make them fewer than the sum.
        loads: work of each row, where it is not proportional to its tokens.
    """
    loads = sizes if loads is None else loads
    rounds = max(1, -(-(sum(sizes) if tokens is None else tokens) // limit), -(-len(sizes) // most))
    workers = executor.workers
    count = min(len(sizes), workers * rounds, max(workers, sum(sizes) // executor.min_tokens))
    # first by worker, then by micro-batch: equal micro-batches alone could still leave one worker with more of them
    members = sorted(_distribute(range(len(sizes)), workers, loads), key=len, reverse=True)
    shares = [-(-(count - member) // workers) for member in range(workers)]
    return _interleave([_distribute(rows, share, loads) for rows, share in zip(members, shares, strict=False)], loads)


def _distribute(rows: Iterable[int], count: int, loads: Sequence[float]) -> Split:
    """Distributes rows over ``count`` parts of about equal work, the largest rows first; empty parts are dropped."""
    found: Split = [[] for _ in range(count)]
    filled = [0.0] * count
    for row in sorted(rows, key=lambda row: (-loads[row], row)):
        into = min(range(count), key=lambda one: (filled[one], one))
        found[into].append(row)
        filled[into] += loads[row]
    order = sorted(range(count), key=lambda one: (-filled[one], one))
    return [sorted(found[one]) for one in order if found[one]]


def _interleave(mine: Sequence[Split], loads: Sequence[float]) -> Split:
    """The workers' micro-batches as one queue, ordered so that each worker takes its own when it becomes free."""
    waiting = sorted((list(some) for some in mine if some), key=lambda some: -sum(loads[row] for row in some[0]))
    done = [0.0] * len(waiting)
    found: Split = []
    while any(waiting):
        member = min((one for one, some in enumerate(waiting) if some), key=lambda one: (done[one], one))
        found.append(waiting[member].pop(0))
        done[member] += sum(loads[row] for row in found[-1])
    return found


def is_balanced(sizes: Sequence[float], share: float, workers: int) -> bool:
    """Whether no worker gets more than this share of the work, when the next free worker takes the next micro-batch."""
    loads = [0.0] * workers
    for size in sizes:
        loads[loads.index(min(loads))] += size
    return max(loads) <= share * sum(sizes)


def balance(sizes: Sequence[int], limit: int, most: int) -> Split:
    """Rows in order as the fewest micro-batches that the limits allow, with the smallest possible maximum of tokens.

    Args:
        sizes: tokens of each row; a row above the limit is a micro-batch by itself.
        limit: most tokens of a micro-batch.
        most: most rows of a micro-batch.
    """
    found, low, high = _filled(sizes, limit, most), 1, limit
    while low < high:  # bisects the lowest limit with as few micro-batches
        middle = (low + high) // 2
        tried = _filled(sizes, middle, most)
        if len(tried) == len(found):
            found, high = tried, middle
        else:
            low = middle + 1
    return found


def _filled(sizes: Sequence[int], limit: int, most: int) -> Split:
    """Fills micro-batches greedily."""
    starts, tokens = [0], 0
    for row, size in enumerate(sizes):
        if row > starts[-1] and (tokens + size > limit or row - starts[-1] == most):
            starts.append(row)
            tokens = 0
        tokens += size
    return [list(range(*ends)) for ends in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def _cost(trainer: TrainingContext, row: Mapping[str, Any]) -> tuple[int, float]:
    """The row's tokens in ``input_ids``, and its work, which only concurrent execution needs.

    For pairs the collator decides whether they share their prompt.
    """
    work = trainer.cost_model if trainer.runs_concurrently else None
    if work is None and "input_ids" in row:
        return len(row["input_ids"]), float(len(row["input_ids"]))
    batch = trainer.data_collator([row])
    tokens = int(batch["input_ids"].numel())
    return tokens, float(tokens) if work is None else float(work(batch).sum())


def _unshared_costs(trainer: TrainingContext, whole: Batch, loads: Sequence[float]) -> list[float]:
    """Work of each row without the prefix that all rows share, which each micro-batch computes once."""
    work = trainer.cost_model
    if work is None:
        return list(loads)
    shared = (sum(loads) - float(work(whole).sum())) / (len(loads) - 1)
    return [max(0.0, load - shared) for load in loads]


def parts(trainer: TrainingContext, batch: Batch, most: int | None = None) -> list[Batch]:
    """The micro-batches of a batch, without `ROWS`; a batch without `ROWS` is not split."""
    return (
        [part(trainer, batch, rows) for rows in split_micro_batches(trainer, batch, most)] if ROWS in batch else [batch]
    )


def part(trainer: TrainingContext, batch: Batch, taken: Sequence[int]) -> Batch:
    """A batch of some rows of a batch, without `ROWS`."""
    rows = [batch[ROWS][row] for row in taken]
    if len(rows) == len(batch[ROWS]) and REGROUPED not in batch:
        return {name: value for name, value in batch.items() if name != ROWS}
    if "images" not in batch:
        return trainer.data_collator(rows)
    images = [batch["images"][row] for row in taken]  # reuses what was read and scaled for the whole batch
    bare = [{name: value for name, value in row.items() if name != "images"} for row in rows]
    found = trainer.data_collator(bare)
    return found | {"images": images} if any(images) else found
