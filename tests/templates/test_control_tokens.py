"""R14: over 2,000 conversations with control tokens in what people say, some through every template."""

from __future__ import annotations

import pytest
from harness import BY_NAME, frozen_date
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prompts import renderer_of

from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.tokenization.encoder import encode, label

EXAMPLES = 15
BORDERS = ("bailing", "breeze", "empty", "ernie_nothink", "index", "solar")
"""No control token stands on both sides of their answers: a token may reach over the border."""
BLANKS = ("ernie_vl", "fewshot")
"""A blank does, and may be in one token with the answer's first word."""
WORDS = ("hi", " ", "\n", "你好", "😀", "a{{b}}", "<|im", "ÿ", "Question: ", "\u200d", "é́", "{% raw %}")


def conversations(controls: list[str]) -> st.SearchStrategy[Chat]:
    """Of one to three turns, whose texts hold control tokens of the template."""
    text = st.lists(st.sampled_from([*WORDS, *controls]), min_size=1, max_size=6).map("".join).filter(str.strip)
    turn = st.tuples(text, text).map(lambda pair: (Message("user", pair[0]), Message("assistant", pair[1])))
    return st.lists(turn, min_size=1, max_size=3).map(lambda turns: Chat(sum(turns, ())))


# RWKV's answers end with an empty line, which is no control token to its own tokenizer and stands in texts as well.
@pytest.fixture(params=[name for name in BY_NAME if name != "rwkv"])
def renderer(request: pytest.FixtureRequest) -> Renderer:
    return renderer_of(BY_NAME[request.param], None)


def test_there_are_enough() -> None:
    assert EXAMPLES * (len(BY_NAME) - 1) >= 2000


@pytest.mark.slow
def test_what_people_say_is_text(renderer: Renderer, request: pytest.FixtureRequest) -> None:
    """The tokens are those of transformers and say the text; control tokens are the template's alone; what the model
    says is what is trained."""
    tokenizer = renderer.tokenizer
    special = set(tokenizer.all_special_ids)
    name = request.node.callspec.params["renderer"]

    def controls_of(ids: list[int]) -> list[int]:
        return [token for token in ids if token in special]

    @settings(max_examples=EXAMPLES, database=None)
    @given(chat=conversations(sorted(tokenizer.all_special_tokens)))
    def holds(chat: Chat) -> None:
        plain = Chat(tuple(Message(message.role, "x") for message in chat.messages))
        with frozen_date():
            rendered, without = renderer.render(chat), renderer.render(plain)
            oracle = tokenizer.apply_chat_template(
                [message.as_dict() for message in chat.messages],
                chat_template=renderer.source,
                sanitize_control_tokens=True,
                return_dict=True,
            )
        encoded, other = encode(tokenizer, [rendered, without])
        ids = encoded.ids.tolist()
        assert ids == oracle["input_ids"]
        assert tokenizer.decode(ids) == rendered.text
        assert controls_of(ids) == controls_of(other.ids.tolist())
        one = label(encoded, rendered, renderer.stop_ids)
        said = "".join(rendered.text[span.start : span.end] for span in rendered.said)
        trained = tokenizer.decode(encoded.ids[one.weights > 0])
        if name in BLANKS:
            trained, said = "".join(trained.split()), "".join(said.split())
        assert name in BORDERS or trained == said

    holds()
