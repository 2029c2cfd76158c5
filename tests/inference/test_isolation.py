"""What one answer raises ends that answer alone; the others are word for word what they are alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ftcore.api.inference_types import Chunk, Prompt
from ftcore.api.samples import Message
from ftcore.errors import UsageError
from ftcore.inference.answers import collect
from ftcore.inference.row_isolation import isolated
from ftcore.inference.sessions import Refused, Turns

TEXTS = ("hello world", "what is your name?", "one two three", "dog " * 30, "the lazy dog")


def ask(text: str, **more: Any) -> Prompt:
    return Prompt((Message("user", text),), **more)


PROMPTS = [ask(text, settings={"max_new_tokens": 6 + 3 * number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def alone(generator: Any) -> list[str]:
    return [collect(generator.stream([prompt]), 1)[0].text for prompt in PROMPTS]


def drained(session: Any) -> tuple[dict[int, str], dict[int, Exception]]:
    """Text of each number, and what ended those that failed."""
    texts, errors = dict[int, str](), dict[int, Exception]()
    while chunks := session.step():
        for chunk in chunks:
            if isinstance(chunk, Refused):
                assert chunk.index not in errors
                errors[chunk.index] = chunk.error
            else:
                assert isinstance(chunk, Chunk)
                assert chunk.index not in errors
                texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
    return texts, errors


def run(generator: Any, slots: int = 4) -> tuple[list[str | None], dict[int, Exception]]:
    """The texts of `PROMPTS`, None where one failed, and what these raised."""
    session = generator.session(slots)
    numbers = [session.add(prompt) for prompt in PROMPTS]
    texts, errors = drained(session)
    assert session.memory.lengths == []
    found = [None if number in errors else texts[number] for number in numbers]
    return found, {numbers.index(number): error for number, error in errors.items()}


def but(texts: list[str], *numbers: int) -> list[str | None]:
    return [None if number in numbers else text for number, text in enumerate(texts)]


def session_row(session: Any, number: int) -> Any:
    return next(row for row in [*session._rows, *session._waiting] if row.task.index == number)


@pytest.mark.parametrize("part", ["choose", "detokenize", "score"])
@pytest.mark.parametrize("token", [0, 1, 2])
def test_what_a_row_raises_after_the_pass_ends_that_row(
    generator: Any, alone: list[str], monkeypatch: pytest.MonkeyPatch, part: str, token: int
) -> None:
    from ft_plugins.engines.transformers import continuous_batching

    seen = list[int]()

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            if len(seen) == token + 1:
                raise ZeroDivisionError("mine")
            return real(*args, **kwargs)

        return run

    session = generator.session(4)
    numbers = [session.add(prompt, 2 if number == 3 else None) for number, prompt in enumerate(PROMPTS)]
    row = session_row(session, numbers[3])
    if part == "choose":
        monkeypatch.setattr(row.chooser, "choose", failing(row.chooser.choose))
    elif part == "detokenize":
        monkeypatch.setattr(row.detokenizer, "add", failing(row.detokenizer.add))
    else:
        monkeypatch.setattr(continuous_batching, "scored_token", failing(continuous_batching.scored_token))
    texts, errors = drained(session)
    assert {numbers.index(number): repr(error) for number, error in errors.items()} == {3: "ZeroDivisionError('mine')"}
    assert [None if number in errors else texts[number] for number in numbers] == but(alone, 3)
    assert session.memory.lengths == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "temperature": 0.5}])
def test_scores_that_are_no_numbers_end_their_row(
    generator: Any, alone: list[str], monkeypatch: pytest.MonkeyPatch, value: float, settings: dict[str, Any]
) -> None:
    """The argmax of a row of NaN is a token like any other: the answer would go on, and nobody would know."""
    forward = generator.model.forward
    monkeypatch.setattr(generator.model, "forward", spoiling(forward, value))
    session = generator.session(4)
    mine = session.add(ask("\u0000", settings=settings, seed=1))
    numbers = [session.add(prompt) for prompt in PROMPTS]
    texts, errors = drained(session)
    assert {number: str(error) for number, error in errors.items()} == {
        mine: "the logits for the next token are not finite"
    }
    assert [texts[number] for number in numbers] == alone


def spoiling(forward: Callable[..., Any], value: float) -> Callable[..., Any]:
    """A model whose scores are `value` wherever a prompt of one odd character is read."""

    def run(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        odd = (kwargs["input_ids"] == odd_token()).any(-1)
        out.logits[odd] = value
        return out

    return run


def odd_token() -> int:
    from ftcore.testing import tiny_tokenizer

    (token,) = set(tiny_tokenizer().encode("\u0000", add_special_tokens=False))
    return token


def test_a_pass_that_fails_for_one_row_ends_that_row(
    generator: Any, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass over all raises on its way, when some layers have taken the token in and others have not."""
    layer = generator.model.model.layers[1]
    forward = layer.forward

    def fail(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths = kwargs["position_ids"][:, -1]
        if hidden.shape[1] == 1 and bool((lengths == mine).any()):
            raise RuntimeError("out of something")
        return forward(hidden, *args, **kwargs)

    mine = len(generator.renderer.prompt_ids(PROMPTS[3].messages)) + 3
    monkeypatch.setattr(layer, "forward", fail)
    found, errors = run(generator, 5)
    assert {number: str(error) for number, error in errors.items()} == {3: "out of something"}
    assert found == but(alone, 3)


def test_a_pass_that_fails_for_being_large_ends_nobody(
    generator: Any, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = generator.model.forward

    def fail(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("too many")
        return forward(*args, **kwargs)

    monkeypatch.setattr(generator.model, "forward", fail)
    assert run(generator, 5) == (alone, {})


def test_a_prompt_that_cannot_be_read_ends_nobody_else(
    generator: Any, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, length = generator.model.model.layers[1], len(generator.renderer.prompt_ids(PROMPTS[1].messages))
    forward = layer.forward

    def fail(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[1] == length:
            raise RuntimeError("no room")
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", fail)
    found, errors = run(generator)
    assert (found, list(errors)) == (but(alone, 1), [1])


def test_no_room_for_a_prompts_keys_leaves_the_others_as_they_were(
    generator: Any, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys of the first layer are joined, then there is no room; the prompt is longer than all that run."""
    from ft_plugins.engines.transformers import kv_cache

    cat, calls = torch.cat, list[int]()

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def cat(self, tensors: Any) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 11:
                raise torch.OutOfMemoryError("no room")
            return cat(tensors)

    monkeypatch.setattr(kv_cache, "torch", Torch())
    found, errors = run(generator, 5)
    assert (found, list(errors)) == (but(alone, 3), [3])


def test_an_engine_that_answers_in_turn_goes_on_with_the_next(generator: Any, alone: list[str]) -> None:
    class Failing:
        tokenizer = generator.tokenizer

        def check(self, prompts: Any) -> None:
            pass

        def stream(self, prompts: Any) -> Any:
            if prompts[0] is PROMPTS[1]:
                raise ZeroDivisionError("mine")
            yield from generator.stream(prompts)

    session: Any = Turns(Failing(), lambda prompt: 1)  # type: ignore[arg-type]
    numbers = [session.add(prompt) for prompt in PROMPTS]
    texts, errors = drained(session)
    assert {numbers.index(number): repr(error) for number, error in errors.items()} == {1: "ZeroDivisionError('mine')"}
    assert [texts.get(number) for number in numbers] == but(alone, 1)


@pytest.mark.slow
def test_a_batch_of_generate_goes_on_without_the_prompt_that_fails(
    generator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [ask(text) for text in (*TEXTS, "\u0000")]
    expected = [collect(generator.stream([prompt]), 1)[0] for prompt in prompts]
    monkeypatch.setattr(generator.model, "forward", spoiling(generator.model.forward, float("nan")))
    found = collect(generator.stream(prompts), len(prompts))
    assert found[:-1] == expected[:-1]
    assert (found[-1].finish, found[-1].text) == ("error", "")
    assert found[-1].error == "the logits for the next token are not finite"


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-21},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": -1.0},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": 0.0},
        {"length_penalty": 1e308},
        {"length_penalty": float("nan")},
        {"top_k": 2**31},
        {"max_new_tokens": 10**30},
        {"max_length": 10**30},
        {"num_beams": 10**9},
    ],
    ids=str,
)
def test_settings_that_no_sampling_bears_are_refused_before(generator: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        generator.session(2).add(ask("hello", settings=settings))


def test_isolated() -> None:
    def halves(numbers: Any) -> list[float]:
        return [1 / number for number in numbers]

    assert isolated(halves, [1, 2, 4]) == [1, 0.5, 0.25]
    found = isolated(halves, [1, 0, 4, 0])
    assert [found[0], found[2]] == [1, 0.25]
    assert [type(found[1]), type(found[3])] == [ZeroDivisionError, ZeroDivisionError]
    assert [type(error) for error in isolated(halves, [0])] == [ZeroDivisionError]
