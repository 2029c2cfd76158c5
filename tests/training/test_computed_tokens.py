"""Work that is not done, counted: multiplications of matrices by torch's counter, bytes by what is made and kept.

The counter does not know the CPU's fused attention; everything else of these models is a product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ft_plugins.backends.cpu import linear_cross_entropy as head_module

pytestmark = pytest.mark.usefixtures("torchs_products")

LENGTHS = [9, 30, 4, 21, 12, 17]
INNER = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
"""What reads a layer's input: where that needs no gradient, neither do their inputs."""


@contextmanager
def counted(total: list[int]) -> Iterator[None]:
    with FlopCounterMode(display=False) as counter:
        yield
    total.append(int(counter.get_total_flops()))


def batch_of(trainer: Any, rows: list[int]) -> Any:
    return trainer.data_collator([trainer.train_dataset[row] for row in rows])


def step(trainer: Any, rows: list[int]) -> tuple[int, int]:
    """Of a forward and a backward pass over some rows."""
    spent: list[int] = []
    batch = batch_of(trainer, rows)
    with counted(spent):
        loss = trainer.objective.loss_sum(batch)
    with counted(spent):
        loss.backward()
    return spent[0], spent[1]


def linears(layer: Any, only: Any = None) -> int:
    """Weights of a layer's linear layers, adapters left out."""
    return sum(
        module.in_features * module.out_features
        for name, module in layer.named_modules()
        if hasattr(module, "in_features")
        and "lora_" not in name
        and not name.endswith("base_layer")
        and (only is None or name in only)
    )


def head(trainer: Any) -> int:
    config = trainer.model.config
    return int(config.vocab_size * config.hidden_size)


def products_of(layers: Any, every: int, trained: int) -> int:
    """Weights times tokens: all of them, but in the last layer's feed-forward part those that are read alone."""
    whole = sum(linears(layer) for layer in layers) * every
    return whole - linears(layers[-1].mlp) * (every - trained)


def tokens_in(rows: list[int]) -> int:
    return sum(LENGTHS[row] for row in rows)


@pytest.mark.parametrize("rows", [[0], [1, 2], [0, 1, 2, 3, 4, 5]], ids=["one", "uneven", "all"])
def test_full_counts_no_padding_and_no_logits_without_a_label(rows: list[int], trainer_of: Any, tokens: Any) -> None:
    """To the number: 2 a weight and token, forward; the same again for each of the two gradients."""
    trainer = trainer_of(tokens(LENGTHS), finetuning_type="full")
    layers, trained = trainer.model.model.layers, len(batch_of(trainer, rows)["positions"])
    assert trained < tokens_in(rows)
    forward, backward = step(trainer, rows)
    body = 2 * products_of(layers, tokens_in(rows), trained)
    assert forward + backward == 3 * body + 3 * 2 * head(trainer) * trained
    # the head's gradients are made in the forward pass, while the logits of a chunk are there
    assert forward == body + 3 * 2 * head(trainer) * trained


def test_frozen_weights_get_no_gradient(trainer_of: Any, tokens: Any) -> None:
    """With adapters: what goes back through a weight, and not what would go into it; a frozen head likewise."""
    rows, rank = [0, 1, 2, 3, 4, 5], 4
    trainer = trainer_of(tokens(LENGTHS), finetuning_type="lora", lora_rank=rank)
    layers = trainer.model.get_base_model().model.layers
    trained, every = len(batch_of(trainer, rows)["positions"]), tokens_in(rows)
    forward, backward = step(trainer, rows)
    base = products_of(layers, every, trained)
    named = [(name, tensor.numel()) for name, tensor in trainer.model.named_parameters() if "lora_" in name]
    unread = sum(size for name, size in named if f"layers.{len(layers) - 1}.mlp" in name)
    adapters = sum(size for _, size in named) * every - unread * (every - trained)
    assert forward == 2 * (base + adapters) + 2 * 2 * head(trainer) * trained
    bottom = linears(layers[0], INNER) * every
    down = sum(tensor.numel() for name, tensor in layers[0].named_parameters() if "lora_A" in name and "_proj" in name)
    assert backward <= 2 * (base - bottom + 2 * adapters)
    assert backward >= 2 * (base - bottom + 2 * adapters - down * every)


def test_the_backward_pass_stops_under_the_lowest_trained_layer(trainer_of: Any, tokens: Any) -> None:
    rows = [0, 1, 2, 3, 4, 5]
    trainer = trainer_of(tokens(LENGTHS), finetuning_type="freeze", freeze_trainable_layers=1)
    _, upper = trainer.model.model.layers
    trained = len(batch_of(trainer, rows)["positions"])
    _, backward = step(trainer, rows)
    assert backward == 2 * 2 * products_of([upper], tokens_in(rows), trained)  # its first norm is trained too
    assert all(tensor.grad is None for tensor in trainer.model.model.layers[0].parameters())


class _Largest(TorchDispatchMode):
    """The largest tensor that is made, in numbers."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_logits_are_never_there_in_full(trainer_of: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of them at a time, and none are kept for the backward pass."""
    trainer = trainer_of(tokens([60, 60, 60], untrained=()), finetuning_type="lora")
    vocabulary = trainer.model.config.vocab_size
    monkeypatch.setattr(head_module, "TILE", (16, vocabulary))
    batch = batch_of(trainer, [0, 1, 2])
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Largest() as largest:
        trainer.objective.loss_sum(batch).backward()
    weights = max(tensor.numel() for tensor in trainer.model.parameters())
    assert max(kept) <= largest.numbers <= max(weights, 16 * vocabulary, 180 * 128)
    assert len(batch["positions"]) * vocabulary > 1.5 * largest.numbers


def test_shorter_rows_cost_what_they_have(trainer_of: Any, tokens: Any) -> None:
    """Two rows together cost what they cost one by one: nothing is padded to the longer one."""
    trainer = trainer_of(tokens(LENGTHS), finetuning_type="full")
    apart = np.array([step(trainer, [1]), step(trainer, [3])]).sum(axis=0)
    assert step(trainer, [1, 3]) == tuple(apart)
