"""What frozen layers compute is kept for every stage that scores rows: the losses stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from ftcore.training.callbacks.progress import read_log

pytestmark = pytest.mark.usefixtures("torchs_products")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["dpo", "rm", "kto", "pt"])
def test_losses_stay_and_no_sequence_is_computed_twice(stage: str, trainer_of: Any, tmp_path: Path) -> None:
    found = {}
    options = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "max_steps": 8, "val_size": 2}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "cutoff_len": 64}
    for wish in (True, False):
        out = tmp_path / str(wish)
        trainer = trainer_of(stage, 9, **options, cache_frozen_prefix=wish, output_dir=str(out))
        if wish:
            prefix, computed = trainer.scorer.frozen_layer_cache, []
            assert prefix.enabled
            alone = prefix.alone
            prefix.alone = lambda ids, alone=alone, computed=computed: (
                computed.append(tuple(ids.tolist())) or alone(ids)
            )
        trainer.train()
        names = ("loss", "eval_loss", "grad_norm")
        lines = read_log(out / "trainer_log.jsonl")
        found[wish] = [line[name] for line in lines for name in names if name in line]
    assert found[True] == pytest.approx(found[False], rel=1e-4)
    assert len(found[True]) == 20
    assert len(set(computed)) == len(computed)
    # a reference, where there is one, has been through all rows when the trainer is made
    assert bool(computed) == (stage in ("rm", "pt"))


@pytest.mark.slow
def test_a_kept_reference_is_not_computed_again(trainer_of: Any) -> None:
    """To the number: what the first trainer computes more than the second is one pass over the rows."""
    trainer_of("dpo", 2, finetuning_type="lora")  # the machine's products are measured
    spent = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            trainer = trainer_of("dpo", 6, finetuning_type="lora")
        spent.append(counter.get_total_flops())
    rows = [trainer.train_dataset[row] for row in range(6)]
    batch = trainer.data_collator(rows)
    layers = trainer.model.get_base_model().model.layers
    sizes = {
        name: module.in_features * module.out_features
        for name, module in layers.named_modules()
        if hasattr(module, "base_layer")
    }
    behind = sum(size for name, size in sizes.items() if name.startswith(f"{len(layers) - 1}.mlp"))
    config = trainer.model.config
    head = config.vocab_size * config.hidden_size
    tokens = batch["input_ids"].numel()
    read = len(batch["positions"])
    # behind the last layer's attention only tokens go on that are read
    assert spent[0] - spent[1] == 2 * (sum(sizes.values()) * tokens - behind * (tokens - read) + head * read)
