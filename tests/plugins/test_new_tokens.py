"""Tokens that a model did not have: their rows, and what is trained for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21's own


def tokenizer_of(plan: Any) -> Any:
    return plan.plugins.hook.ft_load_tokenizer(plan=plan)


def test_tokens_are_read_as_one(plan_of: Any) -> None:
    plain = tokenizer_of(plan_of())
    tokenizer = tokenizer_of(plan_of(add_tokens="<x>,the", add_special_tokens="<|ask|>"))
    size = len(plain)
    assert len(tokenizer) == size + 3 - ("the" in plain.get_vocab())
    ids = tokenizer("a<x>b<|ask|>", add_special_tokens=False).input_ids
    assert [number for number in ids if number >= size] == [size, len(tokenizer) - 1]
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    assert (added["<x>"], added["<|ask|>"]) == (
        False,
        True,
    )  # special ones are control to `ftcore.data.chat_template.sentinels`
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<x>b"


def test_new_rows_are_the_mean_and_a_little_noise(applied: Any, base: Any) -> None:
    run = applied(finetuning_type="full", add_tokens="<x>", add_special_tokens="<y>")
    old, new = base(), run.model
    rows = old.config.vocab_size
    assert new.config.vocab_size == rows + 2
    for ours, theirs in [
        (new.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (new.get_output_embeddings().weight, old.get_output_embeddings().weight),
    ]:
        assert ours.shape == (rows + 2, 64)
        assert torch.equal(ours[:rows], theirs)
        noise = ours[rows:] - theirs.mean(0)
        assert noise.std().item() == pytest.approx(1 / 8, rel=0.2)
        assert not torch.equal(noise[0], noise[1])


def test_rows_that_are_spare_are_used_first(applied: Any, plan_of: Any, base: Any, tmp_path: Path) -> None:
    """Many models have more rows than tokens; what stood in them was never trained."""
    from ftcore.testing import tiny_model

    size = len(tokenizer_of(plan_of()))
    folder = tiny_model(tmp_path / "spare", vocab_size=size + 8)
    run = applied(model_name_or_path=str(folder), finetuning_type="full", add_tokens="<x>")
    weight, before = run.model.get_input_embeddings().weight, base(folder=folder).get_input_embeddings().weight
    assert weight.shape == before.shape
    assert (weight != before).any(1).nonzero().flatten().tolist() == [size]


def test_resize_vocab_gives_rows_to_the_tokens_of_the_tokenizer(applied: Any, tmp_path: Path) -> None:
    from ftcore.testing import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    folder = tiny_model(tmp_path / "short", vocab_size=len(tokenizer) - 3)
    run = applied(model_name_or_path=str(folder), finetuning_type="full", resize_vocab=True)
    assert run.model.config.vocab_size == len(tokenizer)
    assert run.model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_a_tied_head_gets_the_same_rows(applied: Any, tmp_path: Path) -> None:
    from ftcore.testing import tiny_model

    folder = tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    run = applied(model_name_or_path=str(folder), finetuning_type="full", add_tokens="<x>")
    assert run.model.get_input_embeddings().weight is run.model.get_output_embeddings().weight


@pytest.mark.parametrize("tied", [False, True])
def test_lora_trains_embedding_and_head_with_them(tied: bool, applied: Any, tmp_path: Path) -> None:
    from ftcore.resources.model_shapes import Architecture
    from ftcore.testing import tiny_model

    folder = tiny_model(tmp_path / "model", tie_word_embeddings=tied)
    run = applied(model_name_or_path=str(folder), add_tokens="<x>")
    trained = {name: tensor for name, tensor in run.model.named_parameters() if tensor.requires_grad}
    whole = {name for name in trained if ".lora_" not in name}
    names = {"base_model.model.model.embed_tokens", "base_model.model.lm_head"}
    names = {"base_model.model.model.embed_tokens"} if tied else names
    assert whole == {f"{name}.modules_to_save.default.weight" for name in names}
    architecture = Architecture.from_config(json.loads((folder / "config.json").read_text()))
    assert architecture is not None
    counted = run.method.count(architecture, run.method.effective(run.plan))[1]
    assert counted == sum(tensor.numel() for tensor in trained.values()) - 64 * len(names)  # the new row itself


def test_what_the_user_names_is_left_alone(applied: Any, caplog: Any) -> None:
    run = applied(add_tokens="<x>", additional_target="model.norm")
    whole = [name for name, tensor in run.model.named_parameters() if tensor.requires_grad and ".lora_" not in name]
    assert whole == ["base_model.model.model.norm.modules_to_save.default.weight"]
    message = "not trained: embed_tokens, lm_head; the rows of new tokens keep their initial values there"
    assert caplog.messages == [message]
    applied(add_tokens="<x>", finetuning_type="freeze", freeze_extra_modules="lm_head")
    assert caplog.messages[1:] == [message.replace(", lm_head", "")]


@pytest.mark.slow
def test_a_run_with_new_tokens_answers_with_them(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Trained, and asked by what its manifest says: the same vocabulary, and the token comes back whole."""
    from ftcore.api.inference_types import Prompt
    from ftcore.api.samples import Message
    from ftcore.config.planner import make_plan
    from ftcore.inference.target import find_target
    from ftcore.runner.run import run

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": "who", "output": "<me>"}) + "\n" for _ in range(16)))
    values = {"model_name_or_path": str(tiny_model_dir), "output_dir": str(tmp_path / "out"), "add_tokens": "<me>"}
    values |= {"do_train": True, "dataset": str(rows), "template": "chatml", "max_steps": 30, "learning_rate": 1e-2}
    assert run(make_plan(None, values=values | {"save_strategy": "no"})) == 0
    generator = find_target(None, adapters=[str(tmp_path / "out")], overrides=["do_sample=false"]).load()
    prompt = Prompt(messages=(Message(role="user", content="who"),), settings={"max_new_tokens": 5})
    assert "".join(chunk.text for chunk in generator.stream([prompt])) == "<me>"
