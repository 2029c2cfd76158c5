"""Continuous batching: what joins and leaves, and which models cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.components import Generator
from ftcore.api.inference_types import Chunk, Prompt
from ftcore.api.samples import Message
from ftcore.inference.answers import collect
from ftcore.inference.sessions import Turns, open_session
from ftcore.inference.target import find_target
from ftcore.testing import tiny_tokenizer


def ask(text: str, **more: Any) -> Prompt:
    return Prompt((Message("user", text),), **more)


def alone(generator: Any, prompt: Prompt) -> str:
    return collect(generator.stream([prompt]), 1)[0].text


def drain(session: Any, texts: dict[int, str]) -> dict[int, str]:
    """Steps until nothing comes; what each number was answered."""
    while chunks := session.step():
        for chunk in chunks:
            assert isinstance(chunk, Chunk)
            texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
    return texts


@pytest.fixture
def passes(generator: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the model is given, pass by pass."""
    shapes: list[tuple[int, ...]] = []
    forward = generator.model.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(generator.model, "forward", count)
    return shapes


def test_prompts_join_at_any_token_and_leave_at_any(generator: Any, passes: list[tuple[int, ...]]) -> None:
    texts = [f"{'dog ' * (7 * number % 11)}{number}" for number in range(6)]
    prompts = [ask(text, settings={"max_new_tokens": 4 + 5 * number % 9}) for number, text in enumerate(texts)]
    expected = [alone(generator, prompt) for prompt in prompts]
    passes.clear()
    session = generator.session(3)
    numbers, told = [], dict[int, str]()
    for prompt in prompts:
        numbers.append(session.add(prompt))
        for _ in range(2):
            for chunk in session.step():
                told[chunk.index] = told.get(chunk.index, "") + chunk.text
    assert [drain(session, told)[number] for number in numbers] == expected
    assert max(shape[0] for shape in passes) == 3
    assert session.memory.lengths == []


def test_equal_prompts_are_read_once(generator: Any, passes: list[tuple[int, ...]]) -> None:
    session = generator.session(8)
    settings = {"temperature": 1.5, "do_sample": True}
    prompts = [ask("hello world", seed=seed, settings=settings) for seed in range(4)]
    numbers = [session.add(prompt) for prompt in prompts]
    told = drain(session, {})
    assert [shape for shape in passes if shape[1] > 1] == [(1, 13)]
    assert [told[number] for number in numbers] == [alone(generator, prompt) for prompt in prompts]


def test_padding_goes_with_the_row_that_needed_it(generator: Any) -> None:
    session = generator.session(4)
    session.add(ask("dog " * 40, settings={"max_new_tokens": 2}))
    session.add(ask("hello"))
    session.step()
    session.step()
    lengths = session.memory.lengths
    assert len(lengths) == 1
    assert session.memory.cache.layers[0].keys.shape[2] == lengths[0] < 40


def test_dropping_frees_the_place_at_once(generator: Any, passes: list[tuple[int, ...]]) -> None:
    session = generator.session(1)
    first, second = session.add(ask("hello")), session.add(ask("hello world"))
    session.step()
    session.drop(first)
    told = drain(session, {})
    assert list(told) == [second]
    session.drop(second)
    session.drop(99)
    assert session.step() == []


@pytest.fixture
def sliding(tmp_path: Path, built_in: Any) -> Any:
    """A random Mistral that sees 8 tokens back."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=8, **sizes)
        MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    overrides = ["do_sample=false", "max_new_tokens=12", "infer_dtype=float32", "template=chatml"]
    return find_target(None, model=str(tmp_path), overrides=overrides, plugins=built_in).load()


def test_a_model_with_a_window_answers_in_turn(sliding: Any, generator: Any) -> None:
    count: Callable[[Prompt], int] = lambda prompt: 1  # noqa: E731
    assert not isinstance(open_session(generator, 2, count), Turns)
    session = open_session(sliding, 2, count)
    assert isinstance(session, Turns)
    prompts = [ask("hello"), ask("world")]
    numbers = [session.add(prompt) for prompt in prompts]
    told = drain(session, {})
    assert [told[number] for number in numbers] == [alone(sliding, prompt) for prompt in prompts]


def test_dropping_a_turn_leaves_its_stream() -> None:
    left: list[str] = []

    class Counting(Generator):
        def stream(self, prompts: Any) -> Any:
            try:
                yield from (Chunk(0, str(number)) for number in range(9))
            finally:
                left.append(prompts[0].messages[0].content)

    session = Turns(Counting(), lambda prompt: 7)
    first, second, third = (session.add(ask(text)) for text in ("a", "b", "c"))
    (chunk,) = session.step()
    assert chunk == Chunk(first, "0", prompt_tokens=7, tokens=1)
    session.drop(second)
    session.drop(first)
    assert left == ["a"]
    assert session.step() == [Chunk(third, "0", prompt_tokens=7, tokens=1)]
    session.drop(third)
    assert (session.step(), left) == ([], ["a", "c"])
