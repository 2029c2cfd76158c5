"""Smoothed labels: the loss of transformers' LabelSmoother over the global batch, by every way through a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy
from transformers.trainer_pt_utils import LabelSmoother

from ft_plugins.backends.cpu import linear_cross_entropy as tiled
from ft_plugins.backends.cpu.linear_cross_entropy import TiledLinearCrossEntropy
from ft_plugins.stages.sft.objective import NextToken
from ftcore.training.callbacks.progress import read_log
from ftcore.training.losses import linear_cross_entropy as chunked
from ftcore.training.losses.linear_cross_entropy import CHUNKED, LMHead
from ftcore.training.trainer import Trainer

TILED = TiledLinearCrossEntropy()
SHARE = 0.1
LENGTHS = [9, 17, 6, 30, 12, 3, 21, 5]


def logged(folder: Path, name: str) -> list[float]:
    return [line[name] for line in read_log(folder / "trainer_log.jsonl") if name in line]


def smoothed(model: Any, rows: Any, share: float = SHARE) -> torch.Tensor:
    """The mean over all labels of the rows, by transformers' own; padded, with all logits."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        here = torch.from_numpy(row["input_ids"].astype(np.int64))
        ids[number, : len(here)], mask[number, : len(here)] = here, 1
        trained = torch.from_numpy(row["weights"] > 0)
        labels[number, : len(here)] = torch.where(trained, here, -100)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    count = int((labels[:, 1:] != -100).sum())
    own = LabelSmoother(epsilon=share)({"logits": logits}, labels, shift_labels=True, num_items_in_batch=count)
    flat, wanted = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    exact = cross_entropy(flat, wanted, label_smoothing=share, reduction="sum") / count
    assert own.item() == pytest.approx(exact.item(), rel=1e-6)  # it sums in float32 whatever the logits are in
    return exact


@given(data=st.data())
def test_the_head_gives_the_formula_and_its_gradient(data: st.DataObject) -> None:
    """By tiles and by chunks, in float64 and float32: losses, gradients and hits."""
    count, vocabulary = data.draw(st.integers(0, 9)), data.draw(st.integers(2, 40))
    tile = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 41))
    kernel, share = data.draw(st.sampled_from([TILED, CHUNKED])), data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    scale, softcap = data.draw(st.sampled_from([1.0, 0.25])), data.draw(st.sampled_from([None, 5.0]))
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    make = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    hidden, weight = (torch.randn(n, 6, generator=make, dtype=torch.float64) for n in (count, vocabulary))
    bias = torch.randn(vocabulary, generator=make, dtype=torch.float64) if data.draw(st.booleans()) else None
    labels = torch.randint(0, vocabulary, (count,), generator=make)
    weights = torch.rand(count, generator=make, dtype=torch.float64)
    trained = data.draw(st.booleans())

    leaves = [hidden, *([weight] if trained else []), *([bias] if trained and bias is not None else [])]
    exact = [leaf.requires_grad_() for leaf in leaves]
    z = scale * (hidden @ weight.T + (0 if bias is None else bias))
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    each = cross_entropy(z, labels, reduction="none", label_smoothing=share)
    expected = torch.autograd.grad((each * weights).sum(), exact)

    own = [tensor.detach().to(dtype) for tensor in (hidden, weight)] + [
        None if bias is None else bias.detach().to(dtype)
    ]
    mine = [own[0].requires_grad_()] + ([one.requires_grad_() for one in own[1:] if one is not None] if trained else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "TILE", tile)
        patch.setattr(chunked, "CHUNK_BYTES", tile[0])
        head = LMHead(own[1], own[2], scale, softcap)
        total = kernel.weighted_nll(own[0], head, labels, weights.to(dtype), share)
        found = torch.autograd.grad(total, mine)
        losses, hits = kernel.nll_and_hits(own[0], head, labels, share)
    near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    assert torch.allclose(total.double(), (each * weights).sum(), **near)
    assert torch.allclose(losses.double(), each, **near)
    if dtype == torch.float64:
        assert torch.equal(hits, z.argmax(-1) == labels)
    for gradient, wanted in zip(found, expected, strict=True):
        assert torch.allclose(gradient.double(), wanted, **near)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, 2.0)])
def test_gradcheck(trained: bool, scale: float, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE", (3, 2))
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1)
    torch.manual_seed(0)
    hidden = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=trained)
    labels, weights = torch.randint(0, 5, (7,)), torch.rand(7, dtype=torch.float64)
    assert gradcheck(
        lambda h, w: TILED.weighted_nll(h, LMHead(w, None, scale, softcap), labels, weights, 0.2), (hidden, weight)
    )


@pytest.mark.parametrize(
    ("method", "way", "size", "accumulated", "passes"),
    [
        *((method, way, 2, 4, False) for method in ("full", "lora") for way in ("packed", "padded", "own logits")),
        *(("full", "packed", *steps) for steps in ((8, 1, False), (3, 2, False), (8, 1, 16))),
    ],
)
def test_a_step_is_the_mean_over_the_global_batchs_labels(
    method: str,
    way: str,
    size: int,
    accumulated: int,
    passes: Any,
    trainer_of: Any,
    tokens: Any,
    gradient_norm: Any,
    tmp_path: Path,
) -> None:
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
    options |= {"finetuning_type": method, "dtype": torch.float64, "max_grad_norm": 0, "tokens_per_pass": passes}
    data = tokens(LENGTHS)
    trainer = trainer_of(data, label_smoothing_factor=SHARE, **options)
    if way != "packed":
        trainer.scorer.inner.set_attn_implementation("eager")
        trainer.scorer.packed = trainer.scorer.shares = False
        trainer.scorer.last = trainer.scorer.sequence_split = None
    trainer.scorer.fused = trainer.scorer.fused and way != "own logits"
    rows = [data[number] for number in trainer.train_loader().batch_sampler.order()[: size * accumulated]]
    expected = smoothed(trainer.model, rows)
    expected.backward()
    norm = gradient_norm(trainer.model)
    trainer.model.zero_grad()
    trainer.train()
    assert logged(tmp_path / "out", "loss") == [pytest.approx(expected.item(), rel=1e-6)]
    assert logged(tmp_path / "out", "grad_norm") == [pytest.approx(norm, rel=1e-7)]  # softmax in float32


def test_half_precision_sums_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16, dtype=torch.bfloat16), torch.randn(300, 16, dtype=torch.bfloat16)
    labels = torch.randint(0, 300, (50,))
    z = hidden.double() @ weight.double().T
    exact = cross_entropy(z, labels, label_smoothing=SHARE, reduction="sum")
    found = TILED.weighted_nll(hidden, LMHead(weight), labels, torch.ones(50), SHARE)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)


def test_packs_and_the_evaluation(trainer_of: Any, run_of: Any, tokens: Any, tmp_path: Path) -> None:
    """The rows of a pack are as alone, and an evaluation's loss is smoothed as transformers' is; accuracy is not."""
    data = tokens(LENGTHS)

    class Packs:
        """All rows as one pack."""

        places = data.places[:1]

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> dict[str, Any]:
            rows = [data[number] for number in range(len(data))]
            whole = {name: np.concatenate([row[name] for row in rows]) for name in ("input_ids", "weights")}
            return whole | {"lengths": np.array(LENGTHS), "index": np.arange(len(rows))}

    options = {"label_smoothing_factor": SHARE, "dtype": torch.float64, "finetuning_type": "full", "max_steps": 1}
    trainer = Trainer(run_of(**options), NextToken(accuracy=True), train=Packs(), evaluation=data)
    expected = smoothed(trainer.model, [data[number] for number in range(len(data))]).item()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    loss = trainer.objective.loss_sum(batch) / trainer.objective.weight(batch)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    found = trainer.evaluate()
    plain = Trainer(
        run_of(**options | {"label_smoothing_factor": 0.0}), NextToken(accuracy=True), train=Packs(), evaluation=data
    ).evaluate()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-9)
    assert found["eval_accuracy"] == plain["eval_accuracy"]
    assert abs(found["eval_loss"] - plain["eval_loss"]) > 1e-4
    assert trainer_of(data, data, **options).evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-9)


def test_a_resume_with_another_share_is_refused(trainer_of: Any, tokens: Any, tmp_path: Path) -> None:
    from ftcore.training.checkpointing.state import run_fingerprint

    data = tokens(LENGTHS)
    settings_ = [
        run_fingerprint(trainer.plan, trainer.tokenizer, data, 1)
        for trainer in (trainer_of(data), trainer_of(data, label_smoothing_factor=SHARE))
    ]
    assert [problem.message for problem in settings_[0].differences(settings_[1])] == [
        "label_smoothing_factor was 0.0, now it is 0.1"
    ]
