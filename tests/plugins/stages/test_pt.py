"""pt: every token of every text, packed or not, against plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log

TEXTS = ["the quick brown fox", "hello world one two three four", "what is your name? my name is a tiny model.", "fox"]
ROWS = [{"text": text} for text in TEXTS]


def documents(trainer: Any) -> list[list[int]]:
    """The texts by hand: their tokens, and the end-of-sequence token behind them."""
    tokenizer = trainer.tokenizer
    return [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]


def plain_sums(model: Any, sequences: list[list[int]]) -> tuple[torch.Tensor, int]:
    """Sum of the losses of all tokens but first ones, by transformers' own loss, one sequence at a time."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for ids in sequences:
        tokens = torch.tensor([ids])
        if len(ids) > 1:
            total = total + model(input_ids=tokens, labels=tokens).loss.double() * (len(ids) - 1)
            count += len(ids) - 1
    return total, count


@pytest.mark.parametrize("options", [{}, {"packing": False}, {"packing_split": False}, {"cutoff_len": 16}])
def test_loss_and_gradient_are_plain_transformers(options: Any, trainer_of: Any, own_loss: Any, gradient: Any) -> None:
    """Texts isolated; where a pack is full a text goes on, and each of its tokens is predicted once all the same."""
    trainer = trainer_of("pt", ROWS, dtype=torch.float64, finetuning_type="full", **options)
    sequences = documents(trainer)
    if options.get("cutoff_len"):  # text 2 goes over the packs' border
        data = trainer.train_dataset
        starts = data.segments.starts.tolist()
        pieces = zip(data.segments.rows.tolist(), starts, data.segments.ends.tolist(), strict=True)
        sequences = [sequences[row][start:end] for row, start, end in pieces]
        assert len(sequences) > len(TEXTS)
    total, count = plain_sums(trainer.model, sequences)
    assert count == sum(len(document) - 1 for document in documents(trainer))
    expected = gradient(trainer.model, total / count)
    assert own_loss(trainer, range(len(trainer.train_dataset))) == tuple(
        pytest.approx(value, rel=1e-6) for value in expected
    )


def test_texts_that_see_each_other(trainer_of: Any, own_loss: Any, gradient: Any) -> None:
    """A pack is one sequence to the model, and first tokens are predicted from the text before."""
    trainer = trainer_of("pt", ROWS, dtype=torch.float64, isolate_documents=False, finetuning_type="full")
    together = [token for document in documents(trainer) for token in document]
    assert len(trainer.train_dataset) == 1
    total, count = plain_sums(trainer.model, [together])
    assert count == len(together) - 1
    expected = gradient(trainer.model, total / count)
    assert own_loss(trainer, [0]) == tuple(pytest.approx(value, rel=1e-6) for value in expected)


@pytest.mark.parametrize("packing", [True, False])
def test_the_end_is_trained_where_padding_is_the_same_token(packing: bool, trainer_of: Any) -> None:
    """Every text ends with it, and every one of them is a label."""
    trainer = trainer_of("pt", ROWS, packing=packing, pad_token="<|im_end|>")
    assert trainer.tokenizer.pad_token_id == trainer.tokenizer.eos_token_id
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(len(trainer.train_dataset))])
    assert (batch["labels"] == trainer.tokenizer.eos_token_id).sum() == len(TEXTS)
    ends = batch["cu_seqlens"][1:].long() - 1
    assert (batch["input_ids"][0, ends] == trainer.tokenizer.eos_token_id).all()
    assert len(batch["positions"]) == batch["input_ids"].shape[1] - len(TEXTS)


def test_nothing_to_see(stage_run: Any) -> None:
    with pytest.raises(UsageError, match="isolate_documents is false, and packing is false"):
        stage_run("pt", ROWS, isolate_documents=False, packing=False)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_in_numbers(method: str, trainer_of: Any, tmp_path: Path) -> None:
    expected = {"full": [6.00432, 5.72235, 4.81112], "lora": [6.00432, 6.02665, 5.82868]}[method]
    options = {"cutoff_len": 64, "per_device_train_batch_size": 2}
    trainer_of("pt", 16, finetuning_type=method, max_steps=3, **options).train()
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl")]
    assert losses == [pytest.approx(value, rel=1e-4) for value in expected]
