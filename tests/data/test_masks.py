"""Rendering, tokens, masks and reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ft_plugins.templates import TEMPLATES
from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.tokenization.encoder import encode, label
from ftcore.data.tokenization.loss_reasons import Reason
from ftcore.errors import RowError, UsageError

BY_NAME = {template.name: template for template in TEMPLATES}
# Those whose special tokens our tokenizer has.
EVERY = pytest.mark.parametrize("name", ["chatml", "chatglm", "llama3", "qwen", "smollm2"])
CONTROLS = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|user|>", "[gMASK]", "<|endoftext|>")

words = st.sampled_from(["hi", " ", "\n", "你好", "😀", "a{{b}}", "<|im", "ÿ", "Question: ", "\u200d", "é́"])
texts = st.lists(words | st.text(max_size=3), min_size=1, max_size=6).map("".join).filter(str.strip)


@st.composite
def chats(draw: st.DrawFn, content: Any = texts) -> Chat:
    messages = [Message("system", draw(content))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(content)), Message("assistant", draw(content))]
    return Chat(messages=tuple(messages))


def renderer(name: str, tokenizer: Any, **more: Any) -> Renderer:
    return Renderer(tokenizer, BY_NAME[name].source(), stop=BY_NAME[name].stop, **more)


def labelled(made: Renderer, chat: Chat, **policy: bool) -> Any:
    rendered = made.render(chat)
    (encoded,) = encode(made.tokenizer, [rendered])
    return rendered, label(encoded, rendered, made.stop_ids, **policy)


def text_of(tokenizer: Any, one: Any, which: Any) -> str:
    """What the chosen tokens say."""
    return tokenizer.decode(one.encoded.ids[which])


@pytest.mark.slow
@EVERY
@given(chat=chats())
def test_ids_and_mask_are_those_of_transformers(name: str, tokenizer: Any, chat: Chat) -> None:
    made = renderer(name, tokenizer)
    rendered, one = labelled(made, chat)
    oracle = tokenizer.apply_chat_template(
        [message.as_dict() for message in chat.messages],
        chat_template=made.source,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert one.encoded.ids.tolist() == oracle["input_ids"]
    assert (one.weights > 0).astype(int).tolist() == oracle["assistant_masks"]
    assert tokenizer.decode(one.encoded.ids) == rendered.text


@pytest.mark.slow
@EVERY
@given(chat=chats())
def test_trained_is_exactly_the_answers_and_their_ends(name: str, tokenizer: Any, chat: Chat) -> None:
    made = renderer(name, tokenizer)
    rendered, one = labelled(made, chat)
    answers = [message.content for message in chat.messages if message.role == "assistant"]
    answers = [answer.strip() if name == "llama3" else answer for answer in answers]
    before = "\n " if name == "chatglm" else ""  # ChatGLM writes it itself
    stop = BY_NAME[name].stop[0]
    assert [rendered.text[span.start : span.end] for span in rendered.said] == [before + a + stop for a in answers]
    assert text_of(tokenizer, one, one.weights > 0) == "".join(before + answer + stop for answer in answers)
    ends = one.reasons == Reason.END_OF_TURN
    assert text_of(tokenizer, one, ends) == stop * len(answers)
    assert np.array_equal(one.weights > 0, ends | (one.reasons == Reason.ASSISTANT))
    for role, reason in (("user", Reason.USER), ("system", Reason.SYSTEM)):
        contents = [message.content.strip() for message in chat.messages if message.role == role]
        spans = [span for span in rendered.read if rendered.messages[span.message].role == role]
        assert [rendered.text[span.start : span.end] for span in spans] == contents
        assert bool((one.reasons == reason).any()) == bool(contents)


@pytest.mark.slow
@EVERY
@given(chat=chats(st.lists(words | st.sampled_from(CONTROLS), min_size=1).map("".join).filter(str.strip)))
def test_control_tokens_in_text_are_text(name: str, tokenizer: Any, chat: Chat) -> None:
    made = renderer(name, tokenizer)
    rendered, one = labelled(made, chat)
    plain = Chat(messages=tuple(Message(message.role, "x") for message in chat.messages))
    _, without = labelled(made, plain)
    special = set(tokenizer.all_special_ids)
    controls = [token for token in one.encoded.ids.tolist() if token in special]
    assert controls == [token for token in without.encoded.ids.tolist() if token in special]
    assert tokenizer.decode(one.encoded.ids) == rendered.text
    oracle = tokenizer.apply_chat_template(
        [message.as_dict() for message in chat.messages],
        chat_template=made.source,
        sanitize_control_tokens=True,
        return_dict=True,
    )
    assert one.encoded.ids.tolist() == oracle["input_ids"]
    said = "".join(rendered.text[span.start : span.end] for span in rendered.said)
    assert text_of(tokenizer, one, one.weights > 0) == said


def test_added_tokens_are_control_only_where_the_model_does_not_speak(tokenizer: Any) -> None:
    chat = Chat(messages=(Message("user", "<tool_call>"), Message("assistant", "<tool_call>")))
    _, one = labelled(renderer("qwen", tokenizer), chat)
    token = tokenizer.convert_tokens_to_ids("<tool_call>")
    assert (one.encoded.ids == token).sum() == 1
    assert one.reasons[one.encoded.ids == token].tolist() == [Reason.ASSISTANT]


def test_private_use_characters_stay_as_they_are(tokenizer: Any) -> None:
    odd = "a\U000f0000b\U000f0012<|im_end|>c"
    chat = Chat(messages=(Message("user", odd), Message("assistant", odd)))
    rendered, one = labelled(renderer("chatml", tokenizer), chat)
    assert rendered.text == f"<|im_start|>user\n{odd}<|im_end|>\n<|im_start|>assistant\n{odd}<|im_end|>\n"
    assert tokenizer.decode(one.encoded.ids) == rendered.text
    full = "".join(map(chr, range(0xF0000, 0x10FFFE, 2)))
    with pytest.raises(RowError, match="uses all private-use characters"):
        renderer("chatml", tokenizer).render(Chat(messages=(Message("user", full),)))


CHAT = Chat(
    messages=(
        Message("system", "Be nice."),
        Message("user", "one"),
        Message("assistant", "1"),
        Message("user", "two"),
        Message("assistant", "2"),
    )
)


def shown(tokenizer: Any, one: Any) -> list[tuple[str, str, float]]:
    """Runs of tokens with one reason and weight."""
    runs: list[tuple[str, str, float]] = []
    for token, reason, weight in zip(one.encoded.ids, one.reasons, one.weights, strict=True):
        text, why = tokenizer.decode([token]), Reason(reason).label
        if runs and runs[-1][1:] == (why, float(weight)):
            runs[-1] = (runs[-1][0] + text, why, float(weight))
        else:
            runs.append((text, why, float(weight)))
    return runs


def test_reasons(tokenizer: Any) -> None:
    _, one = labelled(renderer("chatml", tokenizer), CHAT, mask_history=True)
    assert shown(tokenizer, one) == [
        ("<|im_start|>system\n", "template", 0.0),
        ("Be nice.", "system", 0.0),
        ("<|im_end|>\n<|im_start|>user\n", "template", 0.0),
        ("one", "user", 0.0),
        ("<|im_end|>\n<|im_start|>assistant\n", "template", 0.0),
        ("1<|im_end|>", "history", 0.0),
        ("\n<|im_start|>user\n", "template", 0.0),
        ("two", "user", 0.0),
        ("<|im_end|>\n<|im_start|>assistant\n", "template", 0.0),
        ("2", "assistant", 1.0),
        ("<|im_end|>", "end-of-turn", 1.0),
        ("\n", "template", 0.0),
    ]


def test_weights_of_turns(tokenizer: Any) -> None:
    messages = (
        Message("user", "one", train=2.0),
        Message("assistant", "1", train=0.5),
        Message("user", "two"),
        Message("assistant", "2", train=0.0),
        Message("user", "three"),
        Message("assistant", "3"),
    )
    _, one = labelled(renderer("chatml", tokenizer), Chat(messages=messages))
    assert [run for run in shown(tokenizer, one) if run[1] not in ("template", "end-of-turn")] == [
        ("one", "user", 2.0),
        ("1", "assistant", 0.5),
        ("two", "user", 0.0),
        ("2<|im_end|>", "history", 0.0),
        ("three", "user", 0.0),
        ("3", "assistant", 1.0),
    ]
    _, one = labelled(renderer("chatml", tokenizer), Chat(messages=messages), train_on_prompt=True)
    assert [run[0] for run in shown(tokenizer, one) if run[2] == 0] == ["2<|im_end|>"]


def test_tools_and_tool_answers(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_end|>"}}}
    chat = Chat(
        messages=(
            Message("user", "q"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "7"),
            Message("assistant", "r"),
        ),
        tools=({"type": "function", "function": {"name": "f"}},),
    )
    rendered, one = labelled(renderer("qwen", tokenizer), chat)
    assert text_of(tokenizer, one, one.reasons == Reason.TOOL) == "7"
    assert text_of(tokenizer, one, one.weights > 0) == (
        '<tool_call>\n{"name": "f", "arguments": {"x": "<|im_end|>"}}\n</tool_call><|im_end|>r<|im_end|>'
    )
    ends = one.encoded.ids == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends.sum() == rendered.text.count("<|im_end|>") - 1


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (Chat(messages=CHAT.messages, tools=({"type": "function"},)), "the chat template does not render tools"),
        (
            Chat(messages=(Message("user", "q"), Message("assistant", "", tool_calls=({"function": {}},)))),
            "the chat template does not render tool_calls",
        ),
        (
            Chat(messages=(Message("user", "q"), Message("assistant", "r", reasoning="why"))),
            "the chat template does not render reasoning_content",
        ),
        (
            Chat(messages=(Message("user", "q \ud83d"), Message("assistant", "r"))),
            "the text contains an unpaired surrogate: \\ud83d",
        ),
    ],
)
def test_rows_that_cannot_be_shown(tokenizer: Any, chat: Chat, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        renderer("chatml", tokenizer).render(chat)
    assert caught.value.reason == reason


def test_the_template_may_refuse(tokenizer: Any) -> None:
    source = "{{ raise_exception('only questions') }}"
    with pytest.raises(RowError) as caught:
        Renderer(tokenizer, source).render(CHAT)
    assert caught.value.reason == "the chat template refuses the conversation: only questions"
    with pytest.raises(UsageError, match="only questions"):
        Renderer(tokenizer, source).prompt_ids(CHAT.messages)


def test_generations_must_match_the_answers(tokenizer: Any) -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    with pytest.raises(RowError) as caught:
        Renderer(tokenizer, source).render(CHAT)
    assert caught.value.reason == "the chat template marks 5 generations for 2 assistant turns"


def unmarked(source: str) -> str:
    for mark in ("{%- generation %}", "{%- endgeneration %}"):
        source = source.replace(mark, "")
    return source


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chatml", "qwen", "llama3", "smollm2"])
@given(chat=chats())
def test_without_marks_prefixes_find_the_same(name: str, tokenizer: Any, chat: Chat) -> None:
    with_marks, without = renderer(name, tokenizer), Renderer(tokenizer, unmarked(BY_NAME[name].source()))
    assert without.render(chat) == with_marks.render(chat)
    assert set(without.stop_ids) <= set(with_marks.stop_ids) | {tokenizer.eos_token_id}
    assert with_marks.stop_ids[0] in without.stop_ids


def test_a_template_that_rewrites_history_is_refused(tokenizer: Any) -> None:
    source = "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else '...' }}\n{% endfor %}"
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    with pytest.raises(RowError) as caught:
        Renderer(tokenizer, source).render(CHAT)
    assert caught.value.field == "messages[2]"
    assert caught.value.reason == (
        "cannot locate the answer in turn 3: the tokenizer's chat template renders a turn differently "
        "when another follows"
    )


def test_default_system(tokenizer: Any) -> None:
    chat = Chat(messages=(Message("user", "q"), Message("assistant", "r")))
    turns = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nr<|im_end|>\n"
    system = '<|im_start|>system\nSay "{{ x }}"\n<|im_end|>\n'
    for name in ("chatml", "qwen", "smollm2"):
        made = renderer(name, tokenizer, default_system='Say "{{ x }}"\n')
        rendered, one = labelled(made, chat)
        assert rendered.text == system + turns
        assert text_of(tokenizer, one, one.reasons == Reason.SYSTEM) == 'Say "{{ x }}"'
        # What is saved with the tokenizer says the same by itself.
        saved = tokenizer.apply_chat_template(
            [message.as_dict() for message in chat.messages], chat_template=made.source, tokenize=False
        )
        assert saved == system + turns
        assert renderer(name, tokenizer, default_system="").render(chat).text == turns


def test_enable_thinking(tokenizer: Any) -> None:
    source = "{{ 'think' if enable_thinking else 'no' if enable_thinking is defined else 'unset' }}"
    for value, text in ((True, "think"), (False, "no"), (None, "unset")):
        assert Renderer(tokenizer, source, enable_thinking=value).prompt(CHAT.messages).text == text


@EVERY
def test_prompts(name: str, tokenizer: Any) -> None:
    made = renderer(name, tokenizer)
    ids = made.prompt_ids(CHAT.messages[:-1])
    assert ids == tokenizer.apply_chat_template(
        [message.as_dict() for message in CHAT.messages[:-1]],
        chat_template=BY_NAME[name].source(),
        add_generation_prompt=True,
        return_dict=False,
    )
    whole = encode(tokenizer, [made.render(CHAT)])[0].ids.tolist()
    assert whole[: len(ids)] == ids
    assert made.stop_ids[0] == tokenizer.convert_tokens_to_ids(BY_NAME[name].stop[0])


def test_stop_token_must_be_a_token(make_plan: Any) -> None:
    from ftcore.testing import tiny_tokenizer

    with pytest.raises(UsageError) as caught:
        Renderer.from_plan(make_plan("", template="llama3"), tiny_tokenizer())
    assert str(caught.value) == (
        "template 'llama3' ends turns with '<|eot_id|>', which is not one token in this tokenizer; "
        "choose the template that the model was trained with, or leave template out to use the tokenizer's own"
    )


def test_the_tokenizers_own_template(make_plan: Any) -> None:
    from ftcore.testing import CHATML, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    made = Renderer.from_plan(make_plan("", template=None), tokenizer)
    assert made.source == CHATML
    assert made.stop_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    tokenizer.chat_template = None
    with pytest.raises(UsageError) as caught:
        Renderer.from_plan(make_plan("", template=None), tokenizer)
    names = ", ".join(sorted({*BY_NAME, "separators"}))
    assert str(caught.value) == f"run.yaml: the tokenizer has no chat template of its own; set template: {names}"
