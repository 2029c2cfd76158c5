"""Adapters that were trained with new tokens: their tokenizer says which, and every use of them has the rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ftcore.errors import UsageError
from ftcore.models.adapters import CONFIG, TOKENIZER, WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's own


@pytest.fixture
def saved(applied: Any, shake: Any, tmp_path: Path) -> Any:
    """``saved("name", add_tokens="<x>")``: an adapter with its tokenizer, as a run leaves it, and its run."""

    def make(name: str, **values: Any) -> Any:
        run = applied(**values)
        shake(run.model)
        folder = tmp_path / name
        folder.mkdir()
        run.method.save(run.model, folder)
        tokenizer = run.plan.plugins.hook.ft_load_tokenizer(plan=run.plan)
        tokenizer.save_pretrained(folder)
        return SimpleNamespace(folder=folder, name=str(folder), run=run, tokenizer=tokenizer)

    return make


def tokenizer_of(plan: Any) -> Any:
    return plan.plugins.hook.ft_load_tokenizer(plan=plan)


TOKENS = {"add_tokens": "<x>,<y>", "add_special_tokens": "<|ask|>"}


def test_its_tokens_have_their_ids_and_kinds(saved: Any, plan_of: Any) -> None:
    one = saved("one", **TOKENS)
    size = len(tokenizer_of(plan_of()))
    more = tokenizer_of(plan_of(adapter_name_or_path=one.name, add_tokens="<z>"))
    assert more.convert_tokens_to_ids(["<x>", "<y>", "<|ask|>", "<z>"]) == [size, size + 1, size + 2, size + 3]
    assert [more.added_tokens_decoder[size + number].special for number in range(4)] == [False, False, True, False]
    text = "a<x>b<|ask|> <y>c"
    assert more(text).input_ids == one.tokenizer(text).input_ids


@pytest.mark.parametrize(
    ("method", "extra", "tied"),
    [
        ("lora", {}, False),
        ("lora", {"add_tokens": "<z>"}, True),
        ("lora", {"create_new_adapter": True}, True),
        ("lora", {"create_new_adapter": True, "add_tokens": "<z>"}, False),
        ("none", {}, True),
        ("none", {"add_tokens": "<z>"}, False),
    ],
)
def test_it_is_trained_further(
    saved: Any, applied: Any, logits: Any, tmp_path: Path, method: str, extra: dict[str, Any], tied: bool
) -> None:
    """The same numbers as where it was trained, whatever the run does with it."""
    from ftcore.testing import tiny_model

    base = str(tiny_model(tmp_path / "model", tie_word_embeddings=tied))
    one = saved("one", model_name_or_path=base, **TOKENS)
    again = applied(model_name_or_path=base, adapter_name_or_path=one.name, finetuning_type=method, **extra)
    rows = len(one.tokenizer)
    found = logits(again.model)
    assert found.shape[-1] == rows + ("add_tokens" in extra)
    assert torch.allclose(found[..., :rows], logits(one.run.model), atol=1e-5)
    weight = again.model.get_input_embeddings().weight
    assert torch.allclose(weight[:rows], one.run.model.get_input_embeddings().weight, atol=1e-6)


def test_resized_rows_come_back(saved: Any, applied: Any, logits: Any, tmp_path: Path) -> None:
    from ftcore.testing import tiny_model, tiny_tokenizer

    base = str(tiny_model(tmp_path / "short", vocab_size=len(tiny_tokenizer()) - 3))
    one = saved("one", model_name_or_path=base, resize_vocab=True)
    again = applied(model_name_or_path=base, adapter_name_or_path=one.name)
    assert torch.allclose(logits(again.model), logits(one.run.model), atol=1e-5)


def test_an_adapter_without_rows_leaves_the_model_as_it_is(saved: Any, applied: Any, logits: Any) -> None:
    one = saved("one")
    again = applied(adapter_name_or_path=one.name)
    assert logits(again.model).shape == logits(one.run.model).shape
    assert torch.allclose(logits(again.model), logits(one.run.model), atol=1e-5)


def test_new_rows_that_are_not_trained_are_found_again(saved: Any, applied: Any, logits: Any) -> None:
    one = saved("one", additional_target="model.norm", **TOKENS)
    again = applied(adapter_name_or_path=one.name)
    assert torch.allclose(logits(again.model), logits(one.run.model), atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("target", ["all", "embed_tokens,lm_head"])
def test_adapters_with_and_without_tokens_are_merged_in_either_order(
    saved: Any, plan_of: Any, logits: Any, order: tuple[int, int], target: str
) -> None:
    """In export and at inference; what a plain one does to embedding or head leaves the new rows as they are."""
    from ft_plugins.engines.transformers.loading import load_adapted
    from ftcore.export.merging import merged_model

    tokens = saved("tokens", add_tokens="<x>,<y>")
    options = {} if target == "all" else {"lora_target": target}
    plain = saved("plain", **options)
    names = [(tokens.name, plain.name)[number] for number in order]
    plan = plan_of(adapter_name_or_path=",".join(names), infer_dtype="float32")
    merged, adapted = merged_model(plan), load_adapted(plan)
    assert merged.get_input_embeddings().weight.shape[0] == len(tokens.tokenizer)
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert merged.config.vocab_size == len(tokens.tokenizer)


def test_two_adapters_with_other_tokens_under_one_id_are_both_named(saved: Any, plan_of: Any) -> None:
    one, other = saved("one", add_tokens="<x>"), saved("other", add_tokens="<y>")
    number = len(one.tokenizer) - 1
    plan = plan_of(adapter_name_or_path=f"{one.name},{other.name}")
    with pytest.raises(UsageError) as caught:
        tokenizer_of(plan)
    reason = f"token {number} is '<x>' in adapter {one.name} and '<y>' in adapter {other.name}"
    cure = "added tokens must agree: train the second adapter on the first, or use only one"
    assert str(caught.value).endswith(f"{reason}; {cure}")


def test_one_token_with_two_ids_is_named(saved: Any, plan_of: Any) -> None:
    one, other = saved("one", add_tokens="<x>"), saved("other", add_tokens="<y>,<x>")
    size = len(one.tokenizer)
    for names, expected in (
        ((one, other), f"token {size - 1} is '<x>' in adapter {one.name} and '<y>' in adapter {other.name}"),
        ((other, one), f"token {size - 1} is '<y>' in adapter {other.name} and '<x>' in adapter {one.name}"),
    ):
        with pytest.raises(UsageError, match=expected):
            tokenizer_of(plan_of(adapter_name_or_path=",".join(each.name for each in names)))


def test_an_adapter_of_a_longer_vocabulary_is_refused(saved: Any, plan_of: Any) -> None:
    one = saved("one", add_tokens="<x>")
    file = one.folder / TOKENIZER
    found = json.loads(file.read_text())
    found["added_tokens"][-1]["id"] += 5
    file.write_text(json.dumps(found))
    number = len(one.tokenizer) - 1
    with pytest.raises(UsageError) as caught:
        tokenizer_of(plan_of(adapter_name_or_path=one.name))
    assert f"adapter {one.name} was trained with '<x>' as token {number + 5}" in str(caught.value)
    assert str(caught.value).endswith(
        f"ends at {number}; write the base model that it was trained on, and before it the adapters that it builds on"
    )


@pytest.mark.slow
def test_one_adapter_on_another_is_used_in_its_order(saved: Any, applied: Any, logits: Any, shake: Any) -> None:
    """The second one was trained on the first one and added a token of its own."""
    one = saved("one", add_tokens="<x>")
    two = saved("two", adapter_name_or_path=one.name, create_new_adapter=True, add_tokens="<y>")
    both = f"{one.name},{two.name}"
    again = applied(adapter_name_or_path=both, finetuning_type="none")
    assert torch.allclose(logits(again.model), logits(two.run.model), atol=1e-4)
    other = applied(adapter_name_or_path=f"{two.name},{one.name}", finetuning_type="none")
    assert logits(other.model).shape == logits(again.model).shape


def test_adapters_without_a_tokenizer_and_damaged_ones(saved: Any, plan_of: Any, applied: Any, tmp_path: Path) -> None:
    one = saved("one")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copy(one.folder / name, bare / name)
    assert len(tokenizer_of(plan_of(adapter_name_or_path=str(bare)))) == len(one.tokenizer)
    applied(adapter_name_or_path=str(bare))
    (bare / TOKENIZER).write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json cannot be read: KeyError"):
        tokenizer_of(plan_of(adapter_name_or_path=str(bare)))


def test_more_rows_than_tokens(saved: Any, applied: Any, logits: Any) -> None:
    """Others make their vocabularies a multiple of 64."""
    one = saved("one", add_tokens="<x>")
    tensors = load_file(one.folder / WEIGHTS)
    grown = {
        name: torch.cat([tensor, tensor.new_zeros(3, tensor.shape[1])]) if ".lora_" not in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(grown, one.folder / WEIGHTS)
    again = applied(adapter_name_or_path=one.name)
    assert logits(again.model).shape[-1] == len(one.tokenizer) + 3
    assert torch.allclose(logits(again.model)[..., :-3], logits(one.run.model), atol=1e-5)


def test_adapters_with_tokens_of_their_own_are_served_alone(saved: Any, plan_of: Any) -> None:
    from ft_plugins.engines.transformers.multi_adapter import load_shared

    tokens, plain = saved("tokens", add_tokens="<x>"), saved("plain")
    plans = {one.folder.name: plan_of(adapter_name_or_path=one.name, template="chatml") for one in (plain, tokens)}
    with pytest.raises(UsageError) as caught:
        load_shared(plans)
    assert "tokens adds tokens that the shared base model does not have; serve it alone" in str(caught.value)
