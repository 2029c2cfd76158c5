"""Preferences, feedback, prompts and texts as tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data.chat_template.reasoning import parted
from ftcore.data.pipeline.loading import chat_datasets, feedback_datasets, pair_datasets
from ftcore.data.tokenization.loss_reasons import Reason
from ftcore.errors import UsageError


def write(folder: Path, name: str, rows: list[Any]) -> None:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))


def error(load: Any, plan: Any, tokenizer: Any, folder: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(plan, tokenizer)
    return str(caught.value).replace(f"{folder}/", "").split("\n")


PAIR = {"instruction": "q", "chosen": "good one", "rejected": "bad"}
TURNS = [
    {"from": "human", "value": "a"},
    {"from": "gpt", "value": "b"},
    {"from": "human", "value": "c"},
]
LATER = {"conversations": TURNS, "chosen": {"from": "gpt", "value": "d"}, "rejected": {"from": "gpt", "value": "e f"}}
FRAME = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def test_pairs(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [PAIR])
    write(tmp_path, "b.jsonl", [LATER])
    data = pair_datasets(make_plan("a.jsonl,b.jsonl", samples="Preference"), tokenizer)
    train = data.train
    assert train is not None
    assert data.eval is None
    shown = [
        tuple(tokenizer.decode(train[i][f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
        for i in range(len(train))
    ]
    assert shown == [
        (FRAME.format("q"), "good one<|im_end|>\n", "bad<|im_end|>\n"),
        (FRAME.format("a") + "b<|im_end|>\n" + FRAME.format("c"), "d<|im_end|>\n", "e f<|im_end|>\n"),
    ]
    for i in range(2):
        row = train[i]
        assert row["index"] == i
        for side in ("chosen", "rejected"):
            assert row[f"{side}_weights"].tolist() == [1.0] * (len(row[f"{side}_ids"]) - 1) + [0.0]  # the line break
    assert train.lengths.tolist() == train.part_lengths.sum(axis=1).tolist()
    assert [str(place).replace(f"{tmp_path}/", "") for place in train.places] == ["a.jsonl:1", "b.jsonl:1"]
    assert train.take(np.array([1]))[0]["chosen_ids"].tolist() == train[1]["chosen_ids"].tolist()
    first, second = data.accounting.train
    assert (first.rows, first.kept) == (1, 1)
    assert first.tokens == first.used == int(train.lengths[0])
    assert second.trained == int((train.parts.weights > 0).sum()) - first.trained
    assert (train.parts.reasons == Reason.HISTORY).sum() == len(tokenizer("b<|im_end|>")["input_ids"])
    with pytest.raises(IndexError):
        train[2]


def test_prompts_are_the_same_whatever_their_shape(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """Instruction, messages, sharegpt, TRL's explicit and implicit prompts, texts and lists: one tokenised dataset."""
    user = {"role": "user", "content": "q"}
    good, bad = ({"role": "assistant", "content": text} for text in ("good one", "bad"))
    shapes: list[dict[str, Any]] = [
        PAIR,
        {"input": "q", "chosen": "good one", "rejected": "bad"},
        {"messages": [user], "chosen": good, "rejected": bad},
        {"messages": [user], "chosen": [good], "rejected": [bad]},
        {"messages": [user], "chosen": "good one", "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good one"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {"prompt": "q", "chosen": "good one", "rejected": "bad"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "q", "chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "q", "messages": [user, good], "chosen": [user, good], "rejected": [user, bad]},
    ]
    prints = set()
    for row in shapes:
        write(tmp_path, "a.jsonl", [row])
        prints.add(pair_datasets(make_plan("a.jsonl", samples="Preference"), tokenizer).train.fingerprint)
    assert len(prints) == 1


def test_pairs_that_cannot_be_trained(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    long = "word " * 60
    rows = [
        PAIR,
        PAIR | {"rejected": "good one"},
        PAIR | {"instruction": long},
        PAIR | {"chosen": long + "a", "rejected": long + "b"},
        PAIR | {"chosen": long},
    ]
    write(tmp_path, "a.jsonl", rows)
    data = pair_datasets(make_plan("a.jsonl", samples="Preference", cutoff_len=60), tokenizer)
    (counts,) = data.accounting.train
    assert {reason: [place.row for place in places] for reason, places in counts.untrainable.items()} == {
        "chosen and rejected are the same": [2],
        "its prompt is longer than cutoff_len": [3],
        "chosen and rejected are the same up to cutoff_len": [4],
    }
    assert (counts.rows, counts.kept, counts.truncated) == (5, 2, 1)
    assert counts.used == int(data.train.lengths.sum())
    prompt, chosen, _ = data.train.part_lengths[1].tolist()
    assert prompt + chosen == 60


def test_train_on_prompt_is_refused(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [PAIR])
    plan = make_plan("a.jsonl", samples="Preference", train_on_prompt=True)
    assert error(pair_datasets, plan, tokenizer, tmp_path) == [
        "run.yaml: train_on_prompt is true, and stage 'train' compares answers; remove train_on_prompt"
    ]


words = st.text(st.sampled_from("ab \n<>好"), max_size=8).filter(str.strip)
pairs = st.lists(st.fixed_dictionaries({"instruction": words, "chosen": words, "rejected": words}), max_size=6)


@pytest.mark.slow
@given(rows=pairs, cutoff=st.integers(20, 60))
def test_parts_make_up_the_conversations(
    tmp_path: Path, tokenizer: Any, make_plan: Any, rows: list[Any], cutoff: int
) -> None:
    """Prompt and answer end to end are the tokens of the conversation, with the same weights; nothing is lost."""
    write(tmp_path, "a.jsonl", [PAIR, *rows])
    data = pair_datasets(make_plan("a.jsonl", samples="Preference", cutoff_len=cutoff), tokenizer)
    (counts,) = data.accounting.train
    assert counts.rows == len(rows) + 1 == counts.kept + counts.left_out
    assert counts.tokens == counts.used + counts.cut + counts.left
    assert counts.used == len(data.train.parts.ids)
    for side in ("chosen", "rejected"):
        chats = [{"instruction": row["instruction"], "output": row[side]} for row in [PAIR, *rows]]
        write(tmp_path, "b.jsonl", chats)
        whole = chat_datasets(make_plan("b.jsonl", cutoff_len=cutoff), tokenizer).train
        by_line = {place.line: whole[i] for i, place in enumerate(whole.places)}
        for i, place in enumerate(data.train.places):
            row, expected = data.train[i], by_line[place.line]
            ids = np.concatenate([row["prompt_ids"], row[f"{side}_ids"]])
            weights = np.concatenate([np.zeros(len(row["prompt_ids"])), row[f"{side}_weights"]])
            assert ids.tolist() == expected["input_ids"].tolist()
            assert weights.tolist() == expected["weights"].tolist()


def test_feedback(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    rows = [
        {"instruction": "q", "output": "r", "kto_tag": True},
        {"instruction": "q", "output": "s t", "kto_tag": False},
        {"instruction": "q", "output": "u", "kto_tag": "FALSE"},
    ]
    write(tmp_path, "a.jsonl", rows)
    data = feedback_datasets(make_plan("a.jsonl", samples="Feedback", val_size=1), tokenizer)
    assert (len(data.train), len(data.eval)) == (2, 1)
    data = feedback_datasets(make_plan("a.jsonl", samples="Feedback"), tokenizer)
    assert data.train.good.tolist() == [True, False, False]
    for i, answer in enumerate(("r", "s t", "u")):
        row = data.train[i]
        assert list(row) == ["prompt_ids", "answer_ids", "answer_weights", "good", "index"]
        assert tokenizer.decode(row["prompt_ids"]) == FRAME.format("q")
        assert tokenizer.decode(row["answer_ids"]) == answer + "<|im_end|>\n"
        assert row["answer_weights"].tolist() == [1.0] * (len(row["answer_ids"]) - 1) + [0.0]
        assert (row["good"], row["index"]) == (i == 0, i)
    (counts,) = data.accounting.train
    assert counts.trained == int((data.train.parts.weights > 0).sum())


@pytest.mark.parametrize(
    ("row", "good"),
    [
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}], "label": False},
            False,
        ),
        ({"prompt": "q", "completion": "r", "label": True}, True),
        (
            {
                "prompt": [{"role": "user", "content": "q"}],
                "completion": [{"role": "assistant", "content": "r"}],
                "label": "true",
            },
            True,
        ),
    ],
)
def test_feedback_of_other_shapes(tmp_path: Path, tokenizer: Any, make_plan: Any, row: Any, good: bool) -> None:
    write(tmp_path, "a.jsonl", [row])
    (found,) = feedback_datasets(make_plan("a.jsonl", samples="Feedback"), tokenizer).train
    assert tokenizer.decode(found["answer_ids"]) == "r<|im_end|>\n"
    assert found["good"] is good


def test_prompts(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    rows = [{"instruction": "q"}, {"instruction": "q", "output": "r"}, {"instruction": "word " * 60}]
    write(tmp_path, "a.jsonl", rows)
    write(
        tmp_path, "b.jsonl", [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}]
    )
    write(tmp_path, "c.jsonl", [{"prompt": "q"}])
    write(tmp_path, "d.jsonl", [PAIR | {"instruction": "q"}, PAIR | {"instruction": "q"}])
    data = chat_datasets(make_plan("a.jsonl,b.jsonl,c.jsonl,d.jsonl", samples="Prompt", cutoff_len=40), tokenizer)
    assert len(data.train) == 6
    for i in range(6):
        assert tokenizer.decode(data.train[i]["input_ids"]) == FRAME.format("q")
        assert not data.train[i]["weights"].any()
    assert list(data.accounting.train[0].untrainable) == ["its prompt is longer than cutoff_len"]


def test_texts(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """Every token is trained but the first; control tokens in the text are text; no template is needed."""
    write(tmp_path, "a.jsonl", [{"text": " one\ntwo "}, {"text": "a<|im_end|>b"}, {"text": "word " * 60}])
    data = chat_datasets(make_plan("a.jsonl", samples="Text", template=None, cutoff_len=50), tokenizer)
    train = data.train
    assert tokenizer.decode(train[0]["input_ids"]) == " one\ntwo <|im_end|>"
    assert tokenizer.decode(train[1]["input_ids"]) == "a<|im_end|>b<|im_end|>"
    assert train[1]["input_ids"].tolist().count(tokenizer.eos_token_id) == 1
    assert train.lengths[2] == 50
    (counts,) = data.accounting.train
    assert (counts.kept, counts.truncated) == (3, 1)
    assert counts.trained == counts.used - 3 == len(train.ids) - 3
    assert (train.weights == 1).all()
    assert train.reasons.tolist().count(Reason.END_OF_TURN) == 2
    assert set(train.reasons.tolist()) == {Reason.TEXT, Reason.END_OF_TURN}


def test_texts_begin_as_the_tokenizer_writes_them(tmp_path: Path, make_plan: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    from ftcore.testing import tiny_tokenizer

    tokenizer = tiny_tokenizer(("<pad>", "<s>", "</s>"))
    tokenizer.bos_token = "<s>"
    assert tokenizer.bos_token_id is not None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    write(tmp_path, "a.jsonl", [{"text": "a<s>b"}])
    (row,) = chat_datasets(make_plan("a.jsonl", samples="Text", template=None), tokenizer).train
    assert row["input_ids"].tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(row["input_ids"]) == "<s>a<s>b</s>"


MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}
KINDS: list[tuple[dict[str, Any], str, str, str]] = [
    (
        MESSAGES,
        "Preference",
        "(columns messages) holds conversations that end with an answer",
        "preferences (chosen and rejected)",
    ),
    (
        PAIR,
        "Chat",
        "(columns instruction, chosen, rejected) holds preferences (chosen and rejected)",
        "conversations that end with an answer",
    ),
    (LATER, "Text", "(columns conversations, chosen, rejected) holds preferences (chosen and rejected)", "texts"),
    (
        {"text": "x"},
        "Prompt",
        "(columns text) holds texts",
        "prompts",
    ),
    (
        MESSAGES | {"label": True},
        "Chat",
        "(columns messages, label) holds labelled answers (kto_tag: true or false)",
        "conversations that end with an answer",
    ),
    (
        {"instruction": "q", "reply": "r"},
        "Chat",
        "(columns instruction, reply) holds prompts without answers",
        "conversations that end with an answer",
    ),
]


OTHER = "choose another dataset or a stage that reads it"
ADVICE = {
    "label": '; to train on all answers alike, ignore the labels: "columns": {"kto_tag": ""}',
    "reply": '; if a column has the answers, name it in dataset_info.json: "columns": {"response": ...}',
}


@pytest.mark.parametrize(("row", "needed", "holds", "needs"), KINDS)
def test_datasets_of_the_wrong_kind(
    tmp_path: Path, tokenizer: Any, make_plan: Any, row: Any, needed: str, holds: str, needs: str
) -> None:
    advice = next((advice for column, advice in ADVICE.items() if column in row), "")
    write(tmp_path, "a.jsonl", [row])
    plan = make_plan("a.jsonl", samples=needed, stage="dpo")
    assert error(chat_datasets, plan, tokenizer, tmp_path) == [
        f"a.jsonl: dataset 'a.jsonl' {holds}; stage 'dpo' needs {needs}; {OTHER}{advice}"
    ]


def test_a_row_can_be_several_things(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """What a stage reads of a row that also holds what other stages read."""
    row = {"instruction": "q", "output": "r", "text": "t", "chosen": "c", "rejected": "d"}
    write(tmp_path, "a.jsonl", [row])
    shown = {
        samples: tokenizer.decode(chat_datasets(make_plan("a.jsonl", samples=samples), tokenizer).train[0]["input_ids"])
        for samples in ("Chat", "Prompt", "Text")
    }
    asked = FRAME.format("q")
    assert shown == {"Chat": asked + "r<|im_end|>\n", "Prompt": asked, "Text": "t<|im_end|>"}
    pair = pair_datasets(make_plan("a.jsonl", samples="Preference"), tokenizer).train[0]
    assert tokenizer.decode(pair["chosen_ids"]) == "c<|im_end|>\n"


def test_descriptions_of_other_tools(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """Raw text described as an instruction, ranked rows, a mark with another name, columns without a name."""
    write(tmp_path, "text.jsonl", [{"content": "t"}])
    write(tmp_path, "ranked.jsonl", [{"q": "q", "good": "c", "bad": "d", "input": "ignored"}])
    write(tmp_path, "marked.jsonl", [MESSAGES | {"liked": False}])
    write(tmp_path, "labelled.jsonl", [MESSAGES | {"label": True}])
    ranked = {"prompt": "q", "query": "", "chosen": "good", "rejected": "bad", "system": None}
    info = {
        "text": {"file_name": "text.jsonl", "columns": {"prompt": "content"}},
        "named": {"file_name": "text.jsonl", "formatting": "alpaca", "columns": {"prompt": "content"}},
        "ranked": {"file_name": "ranked.jsonl", "ranking": True, "columns": ranked, "ms_hub_url": "", "subset": None},
        "marked": {"file_name": "marked.jsonl", "formatting": "openai", "columns": {"kto_tag": "liked"}},
        "labelled": {"file_name": "labelled.jsonl", "columns": {"kto_tag": ""}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    texts = chat_datasets(make_plan("text,named", samples="Text"), tokenizer).train
    assert [tokenizer.decode(texts[i]["input_ids"]) for i in range(2)] == ["t<|im_end|>"] * 2
    (pair,) = pair_datasets(make_plan("ranked", samples="Preference"), tokenizer).train
    assert tokenizer.decode(pair["prompt_ids"]) == FRAME.format("q")
    (marked,) = feedback_datasets(make_plan("marked", samples="Feedback"), tokenizer).train
    assert marked["good"] is False
    assert len(chat_datasets(make_plan("labelled"), tokenizer).train) == 1


def test_a_damaged_first_row_does_not_hide_the_kind(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [{"instruction": "q", "chosen": "c"}, {"x": 1}, PAIR])
    data = pair_datasets(make_plan("a.jsonl", samples="Preference", on_bad_row="skip"), tokenizer)
    (counts,) = data.accounting.train
    assert counts.kept == 1
    assert [str(problem).replace(f"{tmp_path}/", "") for problem in counts.bad] == [
        "a.jsonl:1: the row has no rejected: it has instruction, chosen; write the answer in rejected",
        "a.jsonl:2: the row has no instruction and no input: it has x; write the question in instruction",
    ]


def thought(template: str, content: str, tokenizer: Any, make_plan: Any, folder: Path) -> str:
    write(folder, "a.jsonl", [{"instruction": "q", "output": content}])
    row = chat_datasets(make_plan("a.jsonl", template=template), tokenizer).train[0]
    return tokenizer.decode(row["input_ids"][row["weights"] > 0])


def test_thoughts_in_the_text(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    """Templates that write thoughts are given them apart; others get the text as it is."""
    text = "<think>why\n</think>r"
    assert thought("qwen3", text, tokenizer, make_plan, tmp_path) == "<think>\nwhy\n</think>\n\nr<|im_end|>"
    assert thought("qwen", text, tokenizer, make_plan, tmp_path) == text + "<|im_end|>"
    later = "r <think>why</think>"
    assert thought("qwen", later, tokenizer, make_plan, tmp_path) == later + "<|im_end|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nwhy\n\n</think>\n\nr", ("why", "r")),
        ("\n <think></think>r", ("", "r")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("<think>a", (None, "<think>a")),
        ("a<think>b</think>", (None, "a<think>b</think>")),
        ("", (None, "")),
    ],
)
def test_parted(text: str, expected: Any) -> None:
    assert parted(text) == expected
