"""The engine against transformers' own generate, token for token, on a random model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ftcore.api.components import ChatTemplate
from ftcore.api.inference_types import Prompt
from ftcore.api.samples import Message
from ftcore.errors import UsageError
from ftcore.inference.answers import Answer, collect
from ftcore.testing import CHATML

TEXTS = ("hello world", "what is your name?", "你好,世界。", "one two three four five six seven, and the lazy dog")


def ask(*texts: str, **more: Any) -> list[Prompt]:
    return [Prompt((Message("user", text),), **more) for text in texts]


def answers(generator: Any, prompts: Sequence[Prompt]) -> list[Answer]:
    return collect(generator.stream(prompts), len(prompts))


def reference(generator: Any, text: str, **more: Any) -> tuple[int, list[int]]:
    """Prompt length and new tokens as transformers' own generate makes them, until the tokenizer's end token."""
    import torch

    chat = [{"role": "user", "content": text}]
    ids = generator.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    settings = {"do_sample": False, "max_new_tokens": 24, "pad_token_id": 0, "eos_token_id": 2}
    out = generator.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings | more)
    return len(ids), out[0, len(ids) :].tolist()


def expected(generator: Any, text: str, **more: Any) -> Answer:
    """The answer that this makes."""
    length, ids = reference(generator, text, **more)
    finish = "stop" if ids[-1] == generator.tokenizer.eos_token_id else "length"
    return Answer(generator.tokenizer.decode(ids, skip_special_tokens=True), finish, length, len(ids))


@pytest.mark.parametrize("text", TEXTS)
def test_greedy_is_transformers_own(generator: Any, text: str) -> None:
    assert answers(generator, ask(text)) == [expected(generator, text)]


def test_the_texts_show_both_ends(generator: Any) -> None:
    assert {expected(generator, text).finish for text in TEXTS} == {"stop", "length"}


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({"num_beams": 3, "length_penalty": 2.0}, {"num_beams": 3, "length_penalty": 2.0}),
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"max_new_tokens": 5}, {"max_new_tokens": 5}),
        ({"temperature": 0, "do_sample": True}, {}),
        ({"max_length": 30}, {"max_length": 30, "max_new_tokens": None}),
        ({"max_length": 30, "max_new_tokens": 3}, {"max_new_tokens": 3}),
    ],
)
def test_settings_of_a_prompt_are_obeyed(generator: Any, settings: dict[str, Any], own: dict[str, Any]) -> None:
    assert answers(generator, ask(TEXTS[0], settings=settings)) == [expected(generator, TEXTS[0], **own)]


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}])
def test_a_batch_gives_what_single_prompts_give(generator: Any, settings: dict[str, Any]) -> None:
    prompts = ask(*TEXTS, *TEXTS[:2], settings=settings)
    assert answers(generator, prompts) == [answers(generator, [prompt])[0] for prompt in prompts]


def test_one_batch_holds_prompts_of_like_length_only(generator: Any) -> None:
    tasks = [generator.task(index, prompt) for index, prompt in enumerate(ask("a", "b " * 100, "c", *["d"] * 8))]
    assert [[task.index for task in batch] for batch in generator._batches(tasks)] == [
        [0, 2, 3, 4, 5, 6, 7, 8],
        [9, 10],
        [1],
    ]


def test_pieces_join_to_the_answer(generator: Any) -> None:
    chunks = list(generator.stream(ask(TEXTS[0])))
    assert len(chunks) > 5
    assert all(chunk.index == 0 for chunk in chunks)
    assert [chunk.finish for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
    whole = answers(generator, ask(TEXTS[0], TEXTS[0]))[0]
    assert "".join(chunk.text for chunk in chunks) == whole.text


def test_sampling_repeats_with_a_seed_and_leaves_other_randomness_alone(load: Callable[..., Any]) -> None:
    import torch

    sampler = load("max_new_tokens=16", "temperature=1.5", "top_p=1", "top_k=0")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = answers(sampler, ask(TEXTS[0], seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert answers(sampler, ask(TEXTS[0], seed=3)) == first
    assert answers(sampler, ask(TEXTS[0], seed=4)) != first
    several = answers(sampler, ask(*TEXTS[:3], seed=3))
    assert answers(sampler, ask(*TEXTS[:3], seed=3)) == several
    # without a seed the answers go on from where the last one left off
    assert len({answers(sampler, ask(TEXTS[0]))[0].text for _ in range(3)}) == 3


@pytest.mark.parametrize("option", ["top_k=1", "top_p=0.000001", "temperature=0.00001"])
def test_sampling_from_one_token_is_greedy(load: Callable[..., Any], generator: Any, option: str) -> None:
    sampler = load("max_new_tokens=24", option)
    assert answers(sampler, ask(TEXTS[2], seed=1)) == answers(generator, ask(TEXTS[2]))


def template_that_stops_at(token: str) -> ChatTemplate:
    return ChatTemplate(name="stopper", summary="for a test", text=CHATML, stop=(token,))


@pytest.mark.parametrize("prompts", [TEXTS[:1], TEXTS[:2]])
def test_the_templates_stop_token_stops(
    load: Callable[..., Any], generator: Any, with_plugins: Any, hooks: Any, prompts: Sequence[str]
) -> None:
    _, ids = reference(generator, TEXTS[0])
    stop = next(place for place in range(3, 24) if ids[place] not in ids[:place])
    token = generator.tokenizer.convert_ids_to_tokens(ids[stop])
    plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: [template_that_stops_at(token)]))
    stopping = load("template=stopper", "do_sample=false", "max_new_tokens=24", plugins=plugins)
    found = answers(stopping, ask(*prompts))[0]
    assert (found.finish, found.tokens) == ("stop", stop + 1)
    assert found.text == generator.tokenizer.decode(ids[:stop])
    shown = answers(stopping, ask(*prompts, settings={"skip_special_tokens": False}))[0]
    assert shown.text == generator.tokenizer.decode(ids[: stop + 1])


def test_the_models_own_stop_tokens_stop_too(tiny_model_dir: Any, tmp_path: Any, generator: Any, built_in: Any) -> None:
    import json
    import shutil

    from ftcore.inference.target import find_target

    _, ids = reference(generator, TEXTS[0])
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, ids[0]], "temperature": 9.0}))
    stopping = find_target(None, model=str(folder), overrides=["do_sample=false"], plugins=built_in).load()
    (found,) = answers(stopping, ask(TEXTS[0]))
    assert (found.text, found.finish, found.tokens) == ("", "stop", 1)


def test_leaving_a_stream_stops_it(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    endless = load("do_sample=false", "max_new_tokens=400")

    def generating() -> bool:
        return any(thread.name == "ft-generate" for thread in threading.enumerate())

    calls: list[int] = []
    forward = endless.model.forward
    monkeypatch.setattr(endless.model, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    stream = endless.stream(ask(TEXTS[0]))
    next(stream)
    assert generating()
    stream.close()
    assert not generating()
    assert len(calls) < 400


def test_an_error_in_the_thread_reaches_the_caller(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = load("do_sample=false")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("no more memory")

    monkeypatch.setattr(broken.model, "forward", fail)
    with pytest.raises(ZeroDivisionError, match="no more memory"):
        list(broken.stream(ask("hello")))


def test_wrong_settings_are_told_all_at_once(generator: Any) -> None:
    with pytest.raises(UsageError) as error:
        list(generator.stream(ask("hello", settings={"temprature": 1, "top_p": 3})))
    known = "do_sample, temperature, top_p, top_k, num_beams, max_length, max_new_tokens, repetition_penalty"
    assert str(error.value).splitlines() == [
        f"unknown generation setting 'temprature'; known: {known}, length_penalty, skip_special_tokens",
        "top_p: input should be less than or equal to 1, found 3",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 12}, "the prompt has 13 tokens, max_length is 12"),
        ({"max_length": 13}, "the prompt has 13 tokens, max_length is 13"),
    ],
)
def test_no_room_for_an_answer(generator: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        list(generator.stream(ask(TEXTS[0], settings=settings)))
    assert str(error.value) == message


@pytest.mark.slow
def test_the_models_length_is_the_end(generator: Any) -> None:
    long = "dog " * 200
    prompt = len(generator.renderer.prompt_ids([Message("user", long)]))
    (found,) = answers(generator, ask(long, settings={"max_new_tokens": 10_000, "max_length": None}))
    assert (found.prompt_tokens, found.tokens, found.finish) == (prompt, 512 - prompt, "length")
    with pytest.raises(UsageError, match="the model's longest sequence is 512"):
        list(generator.stream(ask("dog " * 600)))


def test_the_prompt_is_the_prefix_of_what_training_renders(generator: Any) -> None:
    from ftcore.api.samples import Chat
    from ftcore.data.tokenization.encoder import encode

    turns = (Message("system", "be brief"), Message("user", "hello"), Message("assistant", "one two"))
    rendered = generator.renderer.render(Chat(turns))
    trained = encode(generator.tokenizer, [rendered])[0]
    prompt = generator.renderer.prompt_ids(turns[:-1])
    assert trained.ids[: len(prompt)].tolist() == prompt
    assert trained.starts[len(prompt)] == rendered.said[0].start
    assert generator.task(0, Prompt(turns[:-1])).ids == tuple(prompt)
