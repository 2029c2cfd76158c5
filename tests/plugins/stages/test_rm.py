"""rm: scores at the last token, the Bradley-Terry loss, and a model that plain transformers loads."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ftcore.training.callbacks.progress import read_log

METHODS = ["full", "lora", "freeze"]


def whole(row: Any, name: str) -> torch.Tensor:
    return torch.tensor(np.concatenate([row["prompt_ids"], row[f"{name}_ids"]]).astype(np.int64))[None]


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_in_float64(method: str, trainer_of: Any, moved: Any, own_loss: Any, gradient: Any) -> None:
    """Pair by pair through plain transformers' own forward."""
    trainer = trainer_of("rm", 6, dtype=torch.float64, finetuning_type=method)
    moved(trainer.model)
    losses = []
    for index in range(6):
        row = trainer.train_dataset[index]
        chosen, rejected = (trainer.model(whole(row, name)).logits[0, 0] for name in ("chosen", "rejected"))
        losses.append(torch.log1p(torch.exp(rejected - chosen)))
    expected = gradient(trainer.model, sum(losses) / 6)
    assert own_loss(trainer, range(6)) == (pytest.approx(expected[0], rel=1e-9), pytest.approx(expected[1], rel=1e-9))


@pytest.mark.parametrize("method", METHODS)
def test_plain_transformers_loads_what_it_leaves(method: str, trainer_of: Any, moved: Any, tmp_path: Path) -> None:
    """One label, the head among the weights, and the same scores, padded in a batch too."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    trainer = trainer_of("rm", 6, finetuning_type=method, val_size=2)
    moved(trainer.model, 0.1)
    folder = tmp_path / "saved"
    trainer.save_model(str(folder))
    base = str(folder) if method != "lora" else trainer.plan.model.model_name_or_path
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    if method == "lora":
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft 0.21 asks by it
            model = PeftModel.from_pretrained(model, str(folder))
    assert model.config.num_labels == 1
    model.eval()
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        own = trainer.scorer.rewards(batch)
        texts = [whole(trainer.train_dataset[row], name)[0] for name in ("chosen", "rejected") for row in range(4)]
        alone = torch.stack([model(text[None]).logits[0, 0] for text in texts])
        padded = model(**tokenizer.pad({"input_ids": [text.tolist() for text in texts]}, return_tensors="pt")).logits[
            :, 0
        ]
    assert own.std() > 0.01
    torch.testing.assert_close(alone, own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [*METHODS, "qlora"])
def test_the_head_is_trained(method: str, trainer_of: Any) -> None:
    """By every method: it begins at random."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    trainer = trainer_of("rm", 4, finetuning_type=method)
    heads = [tensor for name, tensor in trainer.model.named_parameters() if "score" in name and tensor.requires_grad]
    assert [head.dtype for head in heads] == [torch.float32]
    before = heads[0].clone()
    trainer.train()
    assert not torch.equal(heads[0], before)


@pytest.mark.parametrize("packed", [True, False])
def test_padding_that_ends_a_sequence(packed: bool, trainer_of: Any, rows_of: Any) -> None:
    """Where the padding token ends an answer, the score is read where transformers reads it."""
    trainer = trainer_of("rm", 4)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    padding = trainer.model.config.pad_token_id
    ends = batch["cu_seqlens"][1:].long() - 1
    batch["input_ids"][0, ends] = padding
    starts = batch["cu_seqlens"].tolist()
    trainer.model.eval()
    trainer.scorer.packed = packed
    if not packed:
        trainer.scorer.inner.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = torch.stack(
            [trainer.model(batch["input_ids"][:, start:end]).logits[0, 0] for start, end in pairwise(starts)]
        )
        torch.testing.assert_close(trainer.scorer.rewards(batch), expected, rtol=1e-5, atol=1e-6)
    assert trainer.scorer.ended(batch)["positions"].tolist() == (ends - 1).tolist()


def test_the_way_is_proven_on_the_model(trainer_of: Any) -> None:
    """Sequences end to end, and nothing but last tokens through the head."""
    trainer = trainer_of("rm", 4, finetuning_type="lora")
    assert (trainer.scorer.packed, trainer.scorer.fused) == (True, True)
    seen: list[torch.Size] = []
    trainer.scorer.inner.score.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    trainer.scorer.rewards(trainer.data_collator([trainer.train_dataset[row] for row in range(3)]))
    assert seen == [(6, 64)]


@pytest.mark.parametrize("name", ["GPT2", "Qwen2", "Gemma2", "Bloom"])
def test_other_architectures(name: str) -> None:
    """Each by its own forward, whatever way is chosen."""
    import transformers as t

    from ftcore.training.batching.collators import collate
    from ftcore.training.forward.reward import RewardForward

    shape = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0, "num_labels": 1}
    shape |= {"bos_token_id": 1, "eos_token_id": 2, "n_head": 4, "n_layer": 2}
    shape = {key: value for key, value in shape.items() if name in ("Qwen2", "Gemma2") or key not in ("head_dim",)}
    torch.manual_seed(0)
    model = getattr(t, f"{name}ForSequenceClassification")(getattr(t, f"{name}Config")(**shape)).eval()
    random = np.random.default_rng(0)
    rows = [random.integers(3, 96, length).astype(np.int32) for length in (9, 4, 13)]
    batch = collate([{"input_ids": ids, "weights": np.ones(len(ids), np.float32), "index": 0} for ids in rows])
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor(ids[None]).long()).logits[0, 0] for ids in rows])
        scorer = RewardForward(model)
        scorer.probe_capabilities()
        torch.testing.assert_close(scorer.rewards(batch), expected, rtol=1e-4, atol=1e-5)


def test_metrics(trainer_of: Any, moved: Any, tmp_path: Path) -> None:
    """Accuracy and margin over the evaluation's pairs, whatever the batches."""
    trainer = trainer_of("rm", 9, val_size=5, per_device_eval_batch_size=2)
    moved(trainer.model, 0.2).eval()
    with torch.no_grad():
        scores = torch.tensor(
            [
                [
                    trainer.model(whole(trainer.eval_dataset[row], name)).logits[0, 0].item()
                    for name in ("chosen", "rejected")
                ]
                for row in range(5)
            ],
            dtype=torch.float64,
        )
    margins = scores[:, 0] - scores[:, 1]
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == (margins > 0).double().mean().item()
    assert metrics["eval_margin"] == pytest.approx(margins.mean().item(), rel=1e-4)
    assert metrics["eval_loss"] == pytest.approx(torch.log1p(torch.exp(-margins)).mean().item(), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_in_numbers(method: str, trainer_of: Any, tmp_path: Path) -> None:
    expected = {
        "full": [0.684372, 0.697721, 0.690887],
        "lora": [0.684372, 0.698926, 0.535731],
        "freeze": [0.684372, 0.708813, 0.695303],
    }
    trainer_of("rm", 8, finetuning_type=method, max_steps=3).train()
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "trainer_log.jsonl")]
    assert losses == [pytest.approx(value, rel=1e-4) for value in expected[method]]
