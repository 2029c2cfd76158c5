"""Chat completions through OpenAI's own client, against ``ft generate`` and plain forward passes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .conftest import running

TEXTS = ("hello world", "what is your name?", "你好,世界。", "one two three four five six seven, and the lazy dog")


def ask(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]} | more


def generated(tiny: Any, text: str, seed: int | None = None, **settings: Any) -> Any:
    """What ``ft generate`` answers."""
    from ftcore.api.inference_types import Prompt
    from ftcore.api.samples import Message
    from ftcore.inference.answers import collect

    prompt = Prompt((Message("user", text),), settings=settings or None, seed=seed)
    return collect(tiny.served["tiny"].generator.stream([prompt]), 1)[0]


def facts(completion: Any) -> list[tuple[str, str]]:
    return [(choice.message.content, choice.finish_reason) for choice in completion.choices]


def joined(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("text", TEXTS)
def test_answers_are_those_of_generate(tiny: Any, client: Any, text: str) -> None:
    expected = generated(tiny, text)
    found = client.chat.completions.create(**ask(text))
    assert facts(found) == [(expected.text, expected.finish)]
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].logprobs is None
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, expected.tokens)
    assert usage.total_tokens == expected.prompt_tokens + expected.tokens
    assert (found.model, found.object) == ("tiny", "chat.completion")


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_joins_to_the_answer(tiny: Any, client: Any, text: str) -> None:
    expected = generated(tiny, text)
    chunks = list(client.chat.completions.create(**ask(text), stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    *deltas, last = chunks
    assert (last.choices, last.usage.completion_tokens) == ([], expected.tokens)
    assert deltas[0].choices[0].delta.role == "assistant"
    assert joined(deltas) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in deltas][-2:] == [None, expected.finish]
    assert len(deltas) > 3


@pytest.mark.slow
def test_answers_made_side_by_side_are_those_of_one_alone(tiny: Any, client: Any) -> None:
    """30 at once over 8 places: prompts join and leave the batch at other tokens."""
    texts = [f"{TEXTS[number % 4]} {number}" for number in range(30)]
    sizes = [3 + number % 20 for number in range(30)]
    expected = [generated(tiny, text, max_new_tokens=size).text for text, size in zip(texts, sizes, strict=True)]

    def one(number: int) -> str:
        asked = ask(texts[number], max_tokens=sizes[number])
        if number % 2:
            return joined(client.chat.completions.create(**asked, stream=True))
        return client.chat.completions.create(**asked).choices[0].message.content

    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(one, range(30))) == expected
    assert tiny.settled() == 0


def test_messages_become_the_prompt_of_training(tiny: Any, client: Any) -> None:
    from ftcore.api.inference_types import Prompt
    from ftcore.api.samples import Message
    from ftcore.inference.answers import collect

    turns = (Message("system", "be brief"), Message("user", "hello"), Message("assistant", "one"), Message("user", "?"))
    expected = collect(tiny.served["tiny"].generator.stream([Prompt(turns)]), 1)[0]
    messages = [turn.as_dict() for turn in turns]
    found = client.chat.completions.create(model="tiny", messages=messages)
    assert (facts(found)[0][0], found.usage.prompt_tokens) == (expected.text, expected.prompt_tokens)
    messages[0]["role"] = "developer"
    messages[1]["content"] = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert facts(client.chat.completions.create(model="tiny", messages=messages)) == facts(found)


def test_an_answer_goes_back_as_it_came(client: Any) -> None:
    message = client.chat.completions.create(**ask("hello")).choices[0].message
    turns = [{"role": "user", "content": "hello"}, message, {"role": "user", "content": "and?"}]
    assert client.chat.completions.create(model="tiny", messages=turns).choices


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1.5, "top_p": 0.8, "seed": 3}, {"do_sample": True, "temperature": 1.5, "top_p": 0.8}),
        ({"temperature": 2, "seed": 3, "extra_body": {"top_k": 7}}, {"do_sample": True, "temperature": 2, "top_k": 7}),
        ({"extra_body": {"repetition_penalty": 1.7}}, {"repetition_penalty": 1.7}),
    ],
)
def test_settings_are_obeyed(tiny: Any, client: Any, asked: dict[str, Any], settings: dict[str, Any]) -> None:
    """With a seed the draws are those of ``ft generate``, token for token."""
    expected = generated(tiny, TEXTS[0], seed=asked.get("seed"), **settings)
    assert facts(client.chat.completions.create(**ask(TEXTS[0], **asked))) == [(expected.text, expected.finish)]


def test_what_the_file_says_holds_where_a_request_is_silent(targets: Any) -> None:
    with running(targets("max_new_tokens=null", "max_length=20")) as server, server.client() as client:
        found = client.chat.completions.create(**ask(TEXTS[0]))
        assert (found.usage.total_tokens, found.choices[0].finish_reason) == (20, "length")
        assert client.chat.completions.create(**ask(TEXTS[0], max_tokens=9)).usage.completion_tokens == 9
    with running(targets("serve_max_tokens=6")) as server, server.client() as client:
        assert client.chat.completions.create(**ask(TEXTS[0])).usage.completion_tokens == 6


def test_without_a_seed_every_answer_is_drawn_anew(client: Any) -> None:
    asked = ask(TEXTS[0], temperature=2.0, extra_body={"top_k": 0}, top_p=1)
    assert len({facts(client.chat.completions.create(**asked))[0][0] for _ in range(3)}) == 3


def test_choices_are_answers_with_seeds_in_a_row(tiny: Any, client: Any) -> None:
    asked = ask(TEXTS[0], temperature=1.5, seed=5, n=3)
    settings = {"do_sample": True, "temperature": 1.5}
    expected = [generated(tiny, TEXTS[0], seed=5 + number, **settings) for number in range(3)]
    found = client.chat.completions.create(**asked)
    assert facts(found) == [(one.text, one.finish) for one in expected]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.usage.prompt_tokens == expected[0].prompt_tokens
    assert found.usage.completion_tokens == sum(one.tokens for one in expected)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [one.text for one in expected]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequences_end_the_answer_and_are_not_shown(tiny: Any, client: Any, stream: bool) -> None:
    whole = generated(tiny, TEXTS[0])
    stop = whole.text[7:10]
    cut = whole.text.index(stop)
    asked = ask(TEXTS[0], stop=["never there", stop], logprobs=True)
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        text, finish = joined(chunks), chunks[-1].choices[0].finish_reason
        tokens = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    else:
        found = client.chat.completions.create(**asked)
        ((text, finish),) = facts(found)
        tokens = found.choices[0].logprobs.content
        assert found.usage.completion_tokens < whole.tokens
        assert found.usage.prompt_tokens == whole.prompt_tokens
    assert (text, finish) == (whole.text[:cut], "stop")
    assert b"".join(bytes(one.bytes) for one in tokens).decode("utf-8", "replace").startswith(text)
    assert tiny.settled() == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_a_plain_forward_pass(tiny: Any, client: Any, stream: bool) -> None:
    import torch

    generator = tiny.served["tiny"].generator
    for text in TEXTS:
        asked = ask(text, temperature=1.3, seed=4, logprobs=True, top_logprobs=5)
        if stream:
            chunks = list(client.chat.completions.create(**asked, stream=True))
            said = joined(chunks)
            found = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
        else:
            choice = client.chat.completions.create(**asked).choices[0]
            said, found = choice.message.content, choice.logprobs.content
        raw = b"".join(bytes(one.bytes) for one in found)
        assert raw.decode("utf-8", "replace") == said
        expected = generated(tiny, text, seed=4, do_sample=True, temperature=1.3)
        ids = ids_of(tiny, text, expected, 4)
        prompt = generator.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        with torch.no_grad():
            logits = generator.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.double().log_softmax(-1)
        shown = [token for token in ids if token not in generator.stop_ids]
        assert len(found) == len(shown)
        for place, (token, one) in enumerate(zip(shown, found, strict=True)):
            assert one.logprob == pytest.approx(logprobs[place, token].item(), abs=1e-5)
            assert one.token == generator.tokenizer.decode([token])
            top = logprobs[place].topk(5)
            assert [other.logprob for other in one.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-5)
            assert [other.token for other in one.top_logprobs] == generator.tokenizer.batch_decode(top.indices[:, None])


def ids_of(tiny: Any, text: str, expected: Any, seed: int) -> list[int]:
    """The tokens of a sampled answer, by transformers' own generate."""
    import torch

    generator = tiny.served["tiny"].generator
    chat = [{"role": "user", "content": text}]
    prompt = generator.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    sampling = {"do_sample": True, "temperature": 1.3, "top_p": 0.9, "top_k": 50, "max_new_tokens": 24}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = generator.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            pad_token_id=0,
            eos_token_id=2,
            **sampling,
        )
    ids = out[0, len(prompt) :].tolist()
    assert len(ids) == expected.tokens
    return ids


def test_models_are_listed(client: Any) -> None:
    import openai

    assert [(one.id, one.owned_by) for one in client.models.list()] == [("tiny", "ft")]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="model 'none' does not exist; available: tiny") as error:
        client.models.retrieve("none")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**ask("hello") | {"model": "gpt-4o"})


@pytest.mark.parametrize(
    ("asked", "param", "message"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty: input should be less than or equal to 0"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "logit_bias: dictionary should have at most 0 items"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice: input should be 'none' or 'auto'"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "input should be 'text'"),
        ({"extra_body": {"best_of": 2}}, "best_of", "best_of: this server does not support this field"),
        ({"extra_body": {"max_tokens": "5"}}, "max_tokens", "max_tokens: input should be a valid integer"),
        ({"temperature": 3}, "temperature", "temperature: input should be less than or equal to 2"),
        ({"n": 0}, "n", "n: input should be greater than or equal to 1"),
        ({"n": 100}, "n", "n exceeds the limit of 72 answers"),
        ({"max_tokens": 5000}, "max_tokens", "max_tokens 5000 exceeds the limit of 4096"),
        ({"top_logprobs": 2}, None, "top_logprobs needs logprobs: true"),
        ({"stop": ""}, None, "stop"),
        ({"store": True}, "store", "store: input should be False"),
        ({"messages": []}, "messages", "messages: list should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "there is nothing to answer"),
        (
            {"messages": [{"role": "user", "content": "a", "name": "b"}]},
            "messages.0.name",
            "does not support this field",
        ),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "messages.0.content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content",
            "part 0 is 'image_url': this server supports text only",
        ),
        ({"messages": [{"role": "user", "content": "dog " * 600}]}, None, "the model's longest sequence is 512"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            None,
            "the chat template does not render tools",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_obeyed_is_refused(
    tiny: Any, client: Any, asked: dict[str, Any], param: str | None, message: str
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ask("hello") | asked)
    assert error.value.type == "invalid_request_error"
    assert message in error.value.body["message"]
    if param is not None:
        assert error.value.param == param
    assert tiny.settled() == 0


def test_what_has_no_effect_is_taken(client: Any) -> None:
    more = {"user": "me", "metadata": {"a": "b"}, "store": False, "presence_penalty": 0, "parallel_tool_calls": True}
    asked = ask("hello", **more, response_format={"type": "text"}, service_tier="auto", tool_choice="none")
    assert facts(client.chat.completions.create(**asked)) == facts(client.chat.completions.create(**ask("hello")))


def test_a_model_that_fails_answers_500_and_the_server_goes_on(
    tiny: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openai

    expected = facts(client.chat.completions.create(**ask("hello")))
    model = tiny.served["tiny"].generator.model
    forward, calls = model.forward, []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError("secret")
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", fail)
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(**ask("hello"))
        assert error.value.body["message"] == "the model failed during generation; the server's log has the cause"
        calls.clear()
        with pytest.raises(openai.APIError, match="the model failed"):
            list(client.chat.completions.create(**ask("hello"), stream=True))
    assert tiny.settled() == 0
    assert facts(client.chat.completions.create(**ask("hello"))) == expected
