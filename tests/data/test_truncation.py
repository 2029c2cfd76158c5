"""What is kept of long conversations."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ft_plugins.templates import TEMPLATES
from ftcore.api.samples import Chat, Message
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.tokenization.encoder import Labelled, encode, label
from ftcore.data.tokenization.loss_reasons import Reason
from ftcore.data.tokenization.truncation import NOT_TRAINED, PROMPT_TOO_LONG, kept_tokens

CHATML = next(template for template in TEMPLATES if template.name == "chatml")


def labelled(tokenizer: Any, *messages: Message, **policy: bool) -> Labelled:
    made = Renderer(tokenizer, CHATML.source(), stop=CHATML.stop)
    rendered = made.render(Chat(messages=messages))
    return label(encode(tokenizer, [rendered])[0], rendered, made.stop_ids, **policy)


def kept_text(tokenizer: Any, row: Labelled, cutoff: int) -> str:
    return tokenizer.decode(row.encoded.ids[: kept_tokens(row, cutoff)[0]])


def test_every_cutoff(tokenizer: Any) -> None:
    row = labelled(
        tokenizer, Message("user", "q"), Message("assistant", "ab"), Message("user", "r"), Message("assistant", "c")
    )
    tokens = [tokenizer.decode([token]) for token in row.encoded.ids]
    assert tokens[:6] == ["<|im_start|>", "user", "\n", "q", "<|im_end|>", "\n"]
    whole = "".join(tokens)
    first = whole[: whole.index("ab")]
    start = next(i for i in range(len(tokens)) if "".join(tokens[:i]) == first)
    assert [kept_tokens(row, cutoff) for cutoff in range(2, start + 1)] == [(0, PROMPT_TOO_LONG)] * (start - 1)
    assert kept_text(tokenizer, row, start + 1) == first + "a"
    assert kept_text(tokenizer, row, start + 2) == first + "ab"
    second = whole.rindex("c<|im_end|>")
    for cutoff in range(start + 3, len(tokens)):
        kept = kept_text(tokenizer, row, cutoff)
        reached = len("".join(tokens[:cutoff])) > second
        assert kept == (whole[: len(kept)] if reached else first + "ab<|im_end|>")
        assert not reached or kept.endswith(("c", "c<|im_end|>"))
    assert kept_tokens(row, len(tokens)) == (len(tokens), "")


def test_nothing_trained(tokenizer: Any) -> None:
    row = labelled(tokenizer, Message("user", "q"), Message("assistant", "a", train=0.0))
    assert kept_tokens(row, 1000) == kept_tokens(row, 5) == (0, NOT_TRAINED)


def test_the_first_token_is_never_trained() -> None:
    one = np.array([1], dtype=np.int32)
    row = Labelled(Any, np.ones(1, dtype=np.float32), one.astype(np.uint8))  # type: ignore[arg-type]
    assert kept_tokens(row, 10) == (0, NOT_TRAINED)


text = st.text(st.sampled_from("ab \n好😀"), min_size=1, max_size=8).filter(str.strip)
turns = st.lists(st.tuples(text, text, st.sampled_from([None, 0.0, 0.5])), min_size=1, max_size=3)


@given(turns=turns, cutoff=st.integers(2, 120), on_prompt=st.booleans(), history=st.booleans())
def test_properties(tokenizer: Any, turns: Any, cutoff: int, on_prompt: bool, history: bool) -> None:
    messages = [
        message
        for question, answer, train in turns
        for message in (Message("user", question), Message("assistant", answer, train=train))
    ]
    row = labelled(tokenizer, *messages, train_on_prompt=on_prompt, mask_history=history)
    kept, why = kept_tokens(row, cutoff)
    length, trained = len(row.weights), np.flatnonzero(row.weights[1:]) + 1
    assert (kept == 0) == bool(why)
    if not why and length <= cutoff:
        assert kept == length
    if not why and length > cutoff:
        assert kept <= cutoff
        assert row.weights[kept - 1] > 0
        assert row.reasons[kept - 1] != Reason.TEMPLATE
        lost = trained[(trained >= kept) & (trained < cutoff)]  # only what the template wrote
        assert (row.reasons[lost] == Reason.TEMPLATE).all()
    if why == NOT_TRAINED:
        assert not len(trained)
    if why == PROMPT_TOO_LONG:
        assert length > cutoff
        assert not on_prompt or (row.reasons[trained[trained < cutoff]] == Reason.TEMPLATE).all()
