"""What the frozen layers compute, kept: the same numbers, the same bits after a stop, and nothing computed twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ft_plugins.backends.cpu.runtime import CpuRuntime
from ftcore.errors import UsageError
from ftcore.training.callbacks.progress import read_log
from ftcore.training.checkpointing import directory
from ftcore.training.forward.causal_lm import CausalLMForward, flat_inputs
from ftcore.training.frozen_layer_cache.cache import FrozenLayerCache
from ftcore.training.model_transforms.frozen_layers import FrozenLayers

pytestmark = pytest.mark.usefixtures("torchs_products")

LENGTHS = [9, 17, 6, 30, 12, 3, 21, 1, 16, 5, 28, 11]
FREEZE = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "max_steps": -1, "num_train_epochs": 3}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where each test's rows are kept."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "v2" / "frozen-layers"


@pytest.fixture
def trained(stops_after: Any, trainer_of: Any, tokens: Any, tmp_path: Path) -> Any:
    """``trained(name, **options)``: a run to its end in a folder of that name; its trainer."""

    def train(name: str, stop: int = 0, **options: Any) -> Any:
        values = FREEZE | {"output_dir": str(tmp_path / name)} | options
        trainer = trainer_of(tokens(LENGTHS), tokens([7, 9]), **values)
        if stop:
            trainer.add_callback(stops_after(stop))
        trainer.train()
        return trainer

    return train


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder / "trainer_log.jsonl") if "loss" in line]


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().view(-1) for tensor in trainer.model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [{}, {"freeze_extra_modules": "norm"}, {"finetuning_type": "lora", "lora_target": "layers.1.self_attn.q_proj"}],
    ids=["freeze", "with_norm", "lora"],
)
def test_numbers_are_those_of_an_uncached_run(method: Any, trained: Any, tmp_path: Path, kept: Path) -> None:
    for wish in (True, False):
        trainer = trained(str(wish), cache_frozen_prefix=wish, **method)
        assert (trainer.scorer.frozen_layer_cache is not None) == wish
    found = losses(tmp_path / "True")
    assert found == pytest.approx(losses(tmp_path / "False"), rel=1e-5)
    assert len(found) == 9
    (folder,) = [path for path in kept.iterdir() if path.is_dir()]
    rows = sum(LENGTHS) * 64 * 4  # float32 of 64 numbers a token; evaluation only at the end, which is not part of this
    assert rows <= sum(path.stat().st_size for path in folder.glob("*.rows")) <= rows + 12 * 128


@pytest.mark.slow
def test_with_one_row_a_batch_the_bits_are_those_of_an_uncached_run(trained: Any) -> None:
    both = [
        weights(trained(str(wish), cache_frozen_prefix=wish, per_device_train_batch_size=1)) for wish in (True, False)
    ]
    assert torch.equal(*both)


@pytest.mark.slow
def test_flops_under_the_border_are_spent_once(trainer_of: Any, tokens: Any) -> None:
    """To the number: the first epoch computes the lower layer's products, later ones do not.

    torch's counter does not know the CPU's fused attention.
    """
    trainer = trainer_of(tokens(LENGTHS), **FREEZE)
    spent = [_flops(trainer) for _ in range(3)]
    layer = trainer.model.model.layers[0]
    per_token = 2 * sum(tensor.numel() for tensor in layer.parameters() if tensor.ndim == 2)
    assert spent[0] - spent[1] == per_token * sum(LENGTHS)
    assert spent[1] == spent[2]


def _flops(trainer: Any) -> int:
    """Of an epoch's forward and backward passes; the epochs' batches are not the same ones, their sum is."""
    loader = trainer.train_loader()
    with FlopCounterMode(display=False) as counter:
        for batch in loader:
            trainer.objective.loss_sum({name: value for name, value in batch.items() if name != "rows"}).backward()
    return int(counter.get_total_flops())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "meanwhile"), [(1, "nothing"), (3, "deleted"), (4, "deleted"), (1, "no room"), (4, "other batches")]
)
def test_a_resumed_run_ends_in_the_same_bytes(
    stop: int, meanwhile: str, trained: Any, kept: Path, tmp_path: Path
) -> None:
    """Whatever has become of what was kept."""
    expected = weights(trained("whole"))
    shutil.rmtree(kept)
    if meanwhile == "other batches":
        trained("other", per_device_train_batch_size=3, seed=7)
    trained("stopped", stop=stop)
    if meanwhile in ("deleted", "no room"):
        shutil.rmtree(kept)
    more = {"frozen_prefix_size": 1e-6} if meanwhile == "no room" else {}
    again = trained("stopped", **more)
    assert torch.equal(weights(again), expected)
    assert again.scorer.frozen_layer_cache.enabled
    assert (again.scorer.frozen_layer_cache.store is None) == (meanwhile == "no room")


@pytest.mark.slow
def test_a_run_that_began_without_goes_on_without(trained: Any, tmp_path: Path, capsys: Any) -> None:
    options = {"frozen_prefix_size": 1e-6}
    expected = weights(trained("whole", **options))
    assert "frozen layers are not cached: it needs 44.8 kB, and frozen_prefix_size allows 1 kB" in (
        " ".join(capsys.readouterr().out.split())
    )
    trained("stopped", stop=3, **options)
    again = trained("stopped")
    assert torch.equal(weights(again), expected)
    assert "frozen layers are computed in batches, as before the checkpoint" in capsys.readouterr().out


def test_switching_it_off_is_another_run(trained: Any, tmp_path: Path) -> None:
    trained("stopped", stop=3)
    assert directory.checkpoints(tmp_path / "stopped")
    with pytest.raises(UsageError, match="cache_frozen_prefix"):
        trained("stopped", cache_frozen_prefix=False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"finetuning_type": "full"}, "the first layer is trained"),
        ({"finetuning_type": "lora"}, "the first layer is trained"),
        ({"freeze_extra_modules": "embed_tokens"}, "parameters before the first trainable layer are trained too"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha (puts|adds) noise"),
        ({"frozen_prefix_size": 1e-6}, "it needs 44.8 kB, and frozen_prefix_size allows 1 kB"),
    ],
)
def test_what_cannot_be_kept_is_refused_or_left(options: Any, why: str, trainer_of: Any, tokens: Any) -> None:
    rows = tokens(LENGTHS), tokens([7, 9])
    with pytest.raises(UsageError, match=f"cache_frozen_prefix is true, and {why}"):
        trainer_of(*rows, **(FREEZE | {"cache_frozen_prefix": True} | options))
    prefix = trainer_of(*rows, **(FREEZE | options)).scorer.frozen_layer_cache
    assert prefix is None or not prefix.enabled


def test_dropout_under_the_border_is_seen(run_of: Any, tokens: Any) -> None:
    from ft_plugins.stages.sft.objective import NextToken
    from ftcore.training.trainer import Trainer

    run = run_of(**FREEZE, cache_frozen_prefix=True)
    run.model.model.layers[0].self_attn.attention_dropout = 0.5
    with pytest.raises(UsageError, match="dropout or another random operation comes before the first trainable layer"):
        Trainer(run, NextToken(), train=tokens(LENGTHS))


@pytest.mark.slow
def test_one_epoch_keeps_nothing_unless_told(trainer_of: Any, tokens: Any) -> None:
    one = FREEZE | {"num_train_epochs": 1}
    assert trainer_of(tokens(LENGTHS), **one).scorer.frozen_layer_cache is None
    assert trainer_of(tokens(LENGTHS), **(one | {"max_steps": 3})).scorer.frozen_layer_cache is None
    assert trainer_of(tokens(LENGTHS), **(one | {"max_steps": 4})).scorer.frozen_layer_cache.enabled
    assert trainer_of(tokens(LENGTHS), **one, cache_frozen_prefix=True).scorer.frozen_layer_cache.enabled


def test_a_gpu_keeps_nothing_unless_told(plan_of: Any) -> None:
    on_gpu = [replace(plan_of(**FREEZE, cache_frozen_prefix=wish), device="cuda") for wish in ("auto", True, False)]
    assert [FrozenLayers().planned(plan) for plan in on_gpu] == [
        "on a GPU it is used only with cache_frozen_prefix: true",
        "",
        "cache_frozen_prefix is false",
    ]
    assert FrozenLayers().planned(plan_of(**FREEZE)) == ""


def test_models_in_two_halves(small_models: Any, tokens: Any) -> None:
    """Sliding windows, soft caps, sinks, experts: the upper layers on what was kept give the whole model's bits."""
    from ftcore.training.batching.collators import collate

    batch = collate([tokens([7, 4, 11], vocabulary=90)[row] for row in range(3)])
    for name, model in small_models.items():
        scorer = CausalLMForward(model.make().eval(), CpuRuntime())
        scorer.probe_capabilities()
        if not scorer.packed:
            assert name == "bloom"
            continue
        decoder = scorer.inner.get_decoder()
        with torch.no_grad():
            expected = scorer.hidden(batch)
            prefix = FrozenLayerCache(decoder, decoder.layers, 2, flat_inputs)
            whole: list[torch.Tensor] = []
            hook = decoder.layers[1].register_forward_hook(lambda *call, whole=whole: whole.append(call[2]))
            decoder(**scorer.inputs(batch))
            hook.remove()
            prefix.attach()
            scorer.frozen_layer_cache = prefix
            assert torch.equal(prefix.run_trainable(batch, whole[0])[0, batch["positions"]], expected), name
            prefix.enabled = True
            torch.testing.assert_close(scorer.hidden(batch), expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_recomputed_activations_change_nothing(trained: Any) -> None:
    """Where rows of other lengths are computed with a row, its last digits are others on some processors (8e-7)."""
    for cached, most in ((False, 0), ("auto", 1e-5)):
        options = [{"disable_gradient_checkpointing": off, "cache_frozen_prefix": cached} for off in (True, False)]
        kept, again = (weights(trained(f"{cached}-{number}", **one)) for number, one in enumerate(options))
        torch.testing.assert_close(again, kept, rtol=0, atol=most)
