"""What ends the model's turn: the template's token, the tokenizer's, and what the base model's makers say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from ftcore.api.plan import Run
from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.chat_template.turn_ends import TurnEnds, model_stops
from ftcore.errors import RowError
from ftcore.runner.run import set_ends
from ftcore.testing import CHATML, tiny_tokenizer

GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + message.role + '\n' + message.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)
PHI = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
GLM = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
APRIEL = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}"
    "{{ '\\n<|end|>\\n' if message.role == 'assistant' and not loop.last }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
WORDS = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n\n' }}{% endfor %}"


def tokenizer_of(source: str, *, special: bool = True) -> Any:
    tokenizer = tiny_tokenizer(("<pad>", "<eos>"))
    controls = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_end|>")
    tokenizer.add_tokens([AddedToken(control, special=special, normalized=False) for control in controls])
    tokenizer.chat_template = source
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("source", "ends", "stops"),
    [
        (GEMMA, TurnEnds(("<end_of_turn>",), ("<end_of_turn>",), trailer="\n"), ["<end_of_turn>", "<eos>"]),
        (PHI, TurnEnds(("<|end|>",), ("<|end|>",), trailer="\n<eos>"), ["<|end|>", "<eos>"]),
        (GLM, TurnEnds(next=("<|user|>",)), ["<|user|>", "<eos>"]),
        (APRIEL, TurnEnds(history=("<|end|>",)), ["<|end|>", "<eos>"]),
        (CHATML, TurnEnds(("<|im_end|>",), ("<|im_end|>",), trailer="\n"), ["<|im_end|>", "<eos>"]),
        (WORDS, TurnEnds(), ["<eos>"]),
    ],
)
def test_the_ends_of_turns(source: str, ends: TurnEnds, stops: list[str], special: bool) -> None:
    tokenizer = tokenizer_of(source, special=special)
    renderer = Renderer(tokenizer, source)
    assert renderer.ends == ends
    assert tokenizer.convert_ids_to_tokens(list(renderer.stop_ids)) == stops


@pytest.mark.parametrize("source", [GEMMA, PHI])
def test_what_the_template_writes_after_the_end_of_a_turn_is_not_said(source: str) -> None:
    end = "<end_of_turn>" if source == GEMMA else "<|end|>"
    turns = [Message("user", "a"), Message("assistant", "b\n"), Message("user", "c"), Message("assistant", "d")]
    rendered = Renderer(tokenizer_of(source), source).render(Chat(tuple(turns)))
    assert [rendered.text[span.start : span.end] for span in rendered.said] == [f"b\n{end}", f"d{end}"]


def test_an_end_that_is_written_only_within_a_conversation() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    rendered = Renderer(tokenizer_of(APRIEL), APRIEL).render(Chat(tuple(turns)))
    assert [rendered.text[span.start : span.end] for span in rendered.said] == ["b\n<|end|>", "d"]


FORGETFUL = (
    "{% for message in messages %}{{ '<start_of_turn>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>' + (message.reasoning_content or '') + '</think>' }}"
    "{% endif %}{{ message.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)


def test_answers_are_found_where_a_conversation_is_written_differently_once_it_goes_on() -> None:
    """Qwen3's way: only the last answer has its thought, or an empty one."""
    turns = (
        Message("user", "a"),
        Message("assistant", "say <end_of_turn> b", "no"),
        Message("user", "c"),
        Message("assistant", "d", "why"),
    )
    rendered = Renderer(tokenizer_of(FORGETFUL), FORGETFUL).render(Chat(turns))
    said = [rendered.text[span.start : span.end] for span in rendered.said]
    assert said == ["say <end_of_turn> b<end_of_turn>", "<think>why</think>d<end_of_turn>"]


def test_answers_that_are_not_found_are_refused() -> None:
    source = FORGETFUL.replace("<end_of_turn>", "").replace("<start_of_turn>", "")
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    with pytest.raises(RowError) as caught:
        Renderer(tokenizer_of(source), source).render(Chat(turns))
    assert str(caught.value).startswith("cannot locate the answer in turn 2: the tokenizer's chat template")


def plan_of(folder: Path, config: Any) -> Any:
    model = SimpleNamespace(model_name_or_path=str(folder), model_revision="main", cache_dir=None)
    return SimpleNamespace(source=None, model=model, config=config)


@pytest.mark.parametrize(
    ("file", "config", "ids"),
    [
        ({"eos_token_id": [3, 5]}, {"eos_token_id": 1}, (3, 5)),
        ({"eos_token_id": 3}, {}, (3,)),
        ({}, {"eos_token_id": 1}, ()),
        (None, {"eos_token_id": 1}, (1,)),
        (None, {"eos_token_id": [1, None, "2", True]}, (1,)),
        (None, None, ()),
        ([], {}, ()),
    ],
)
def test_what_the_base_model_stops_with(tmp_path: Path, file: Any, config: Any, ids: tuple[int, ...]) -> None:
    if file is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(file))
    assert model_stops(plan_of(tmp_path, config)) == ids


def test_a_damaged_generation_config_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    assert model_stops(plan_of(tmp_path, {"eos_token_id": 1})) == ()


def test_ids_beyond_the_vocabulary_stop_nothing() -> None:
    tokenizer = tokenizer_of(GEMMA)
    renderer = Renderer(tokenizer, GEMMA, model_stops=(7, len(tokenizer)))
    assert tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))[:2] == ["<end_of_turn>", "<eos>"]
    assert renderer.stop_ids[2:] == (7,)


@pytest.mark.parametrize(
    ("saves_adapter", "samples", "head", "written"),
    [
        (False, ("Chat",), "causal_lm", True),
        (True, ("Chat",), "causal_lm", False),
        (False, ("Text",), "causal_lm", False),
        (False, ("Chat",), "sequence_classification", False),
    ],
)
def test_a_whole_model_is_saved_with_its_ends(
    make_plan: Any, saves_adapter: bool, samples: tuple[str, ...], head: str, written: bool
) -> None:
    tokenizer, plan = tokenizer_of(GEMMA), make_plan("", template=None)
    plan.method = SimpleNamespace(component=SimpleNamespace(saves_adapter=saves_adapter))
    plan.stage = SimpleNamespace(component=SimpleNamespace(samples=samples, head=head))
    config = SimpleNamespace(eos_token_id=2)
    set_ends(Run(plan=plan, tokenizer=tokenizer, model=SimpleNamespace(generation_config=config)))  # type: ignore[arg-type]
    ends = tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    assert config.eos_token_id == (ends if written else 2)
