"""Collates rows into a packed batch: sequences end to end without padding, labels already shifted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ftcore.errors import Problem, RowError, RunError

if TYPE_CHECKING:
    from ftcore.data.multimodal.images import ImageReader

IGNORED = -100

Batch = dict[str, Any]
"""What `collate` returns."""


def collate(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """The rows as one batch of N tokens.

    Args:
        rows: ``input_ids`` int32 ``[L]``, ``weights`` float32 ``[L]`` (the token's weight as a target; 0: not trained)
            and ``index``, the row's number in its dataset. A pack of n rows also has ``lengths`` ``[n]``, and n numbers
            in ``index``.

    Returns:
        ``input_ids``, ``position_ids``, ``labels`` int64 ``[1, N]``. ``labels[0, i]`` is the next token of the same
        sequence, or -100 where that is not trained or the sequence ends. ``weights`` float32 ``[1, N]``: weights of
        the labels. ``positions`` int64 ``[T]``: indices of the labels. ``cu_seqlens`` int32 ``[rows + 1]``,
        ``max_len`` int, ``index`` list of int.
    """
    rows = [piece for row in rows for piece in _pieces(row)]
    lengths = [len(row["input_ids"]) for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.asarray(row["input_ids"], dtype=np.int64) for row in rows])
    weights = np.zeros(len(ids), dtype=np.float32)
    labels = np.full(len(ids), IGNORED, dtype=np.int64)
    for row, start, end in zip(rows, starts[:-1], starts[1:], strict=True):
        weights[start : end - 1] = row["weights"][1:]
        labels[start : end - 1] = ids[start + 1 : end]
    labels[weights == 0] = IGNORED
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        "labels": torch.from_numpy(labels)[None],
        "weights": torch.from_numpy(weights)[None],
        "positions": torch.from_numpy(np.flatnonzero(weights)),
        "cu_seqlens": torch.from_numpy(starts.astype(np.int32)),
        "max_len": max(lengths),
        "index": [int(row["index"]) for row in rows],
    }


def tokens_read(batch: Batch) -> int:
    """Tokens of all sequences; a shared prefix counts once per sequence."""
    shared = (end - start for ranges in batch.get("prefixes", ()) for start, end in ranges)
    return int(batch["input_ids"].numel()) + sum(shared)


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device, those in dictionaries, lists and tuples included."""
    if isinstance(batch, dict):
        return {name: on_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(on_device(value, device) for value in batch)
    return batch.to(device) if isinstance(batch, torch.Tensor) else batch


class ImageCollator:
    """`collate` for rows with ``images``; packs have none.

    A batch with images also has ``images``: for each row what `ImageReader.inputs` returns, or an empty dictionary.
    """

    def __init__(self, pictures: ImageReader) -> None:
        self.pictures = pictures

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The rows as one batch."""
        batch = collate(rows)
        if any("images" in row for row in rows):
            batch["images"] = [self._inputs(row) for row in rows]
        return batch

    def _inputs(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self.pictures.inputs(row["images"], row["input_ids"], row["weights"]) if "images" in row else {}
        except RowError as error:
            raise RunError(str(Problem(error.reason, hint=error.cure))) from error


def collate_joined(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """`collate` with each pack as one sequence: its rows attend to those before, and their first tokens have labels.

    ``index`` holds the number of each pack's first row.
    """
    return collate(
        [{**row, "lengths": [len(row["input_ids"])], "index": np.atleast_1d(row["index"])[:1]} for row in rows]
    )


def _pieces(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rows of a pack; another row by itself."""
    if "lengths" not in row:
        yield row
        return
    ends = np.cumsum(row["lengths"]).tolist()
    for start, end, index in zip([0, *ends[:-1]], ends, row["index"], strict=True):
        yield {"input_ids": row["input_ids"][start:end], "weights": row["weights"][start:end], "index": index}


def padded(batch: Batch) -> dict[str, torch.Tensor]:
    """The batch with one sequence per row, padded on the right, for models that do not support packed sequences.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[B, L]``, and ``rows`` and ``columns`` ``[T]``, the indices of the
        labels.
    """
    assert "prefixes" not in batch
    starts, positions = batch["cu_seqlens"].long(), batch["positions"]
    lengths = starts.diff()
    columns = torch.arange(batch["max_len"], device=starts.device)
    mask = columns[None] < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long, device=starts.device)
    ids[mask] = batch["input_ids"][0]
    rows = torch.searchsorted(starts, positions, right=True) - 1
    return {"input_ids": ids, "attention_mask": mask.long(), "rows": rows, "columns": positions - starts[rows]}
