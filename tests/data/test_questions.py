"""Prompts without answers: asked by predicting and by ``ft generate``, refused by whoever trains on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.samples import Chat
from ftcore.config.planner import make_plan as real_plan
from ftcore.data.formats.detection import read_samples
from ftcore.data.pipeline.loading import chat_datasets, pair_datasets
from ftcore.data.preprocessing.questions import NO_ANSWER
from ftcore.errors import RowError, UsageError
from ftcore.inference.dataset_prompts import dataset_prompts

MISSING: Any = object()
ANSWERS = {"answered": "yes", "empty": "", "blank": " \n", "null": None, "missing": MISSING}


def with_answer(row: dict[str, Any], column: str, answer: Any) -> dict[str, Any]:
    return row if answer is MISSING else {**row, column: answer}


def turns(role: str, content: str, user: str, assistant: str, answer: Any) -> list[dict[str, Any]]:
    last = [] if answer is MISSING else [{role: assistant, content: answer}]
    return [{role: user, content: "one"}, {role: assistant, content: "two"}, {role: user, content: "q?"}, *last]


def in_turn(answer: Any) -> Any:
    return answer if answer is MISSING else [{"role": "assistant", "content": answer}]


FORMATS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "instruction": lambda a: with_answer({"instruction": "q?", "history": [["one", "two"]]}, "output", a),
    "completion": lambda a: with_answer(
        {"prompt": turns("role", "content", "user", "assistant", MISSING)}, "completion", a
    ),
    "completion turns": lambda a: with_answer({"prompt": "q?"}, "completion", in_turn(a)),
    "messages": lambda a: {"messages": turns("role", "content", "user", "assistant", a)},
    "sharegpt": lambda a: {"conversations": turns("from", "value", "human", "gpt", a)},
}
OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "kto": lambda a: with_answer({"prompt": "q?", "label": True}, "completion", a),
    "preference": lambda a: with_answer(with_answer({"prompt": "q?"}, "chosen", a), "rejected", a),
    "alpaca preference": lambda a: with_answer(with_answer({"instruction": "q?"}, "chosen", a), "rejected", a),
    "sharegpt preference": lambda a: with_answer(
        with_answer({"conversations": turns("from", "value", "human", "gpt", MISSING)}, "chosen", a), "rejected", a
    ),
}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("first", ANSWERS)
@pytest.mark.parametrize("form", [*FORMATS, *OTHERS])
def test_every_format_is_asked(form: str, first: str, tmp_path: Path, write_config: Any, built_in: Any) -> None:
    """Row by row, whichever of them comes first."""
    order = [first, *(name for name in ANSWERS if name != first)]
    file = write(tmp_path, "a.jsonl", [(FORMATS | OTHERS)[form](ANSWERS[name]) for name in order])
    plan = real_plan(write_config(do_train=False, dataset=...), plugins=built_in)
    rows, prompts, told = dataset_prompts(str(file), plan, None)
    assert told == []
    assert [row.get("label") for row in rows] == [{"answered": "yes"}.get(name) for name in order]
    assert {prompt.messages[-1].content for prompt in prompts} == {"q?"}
    assert {prompt.messages[-1].role for prompt in prompts} == {"user"}
    assert [prompt.place for prompt in prompts] == [f"{file}:{line}" for line in range(1, 6)]


@pytest.mark.parametrize("missing", [name for name in ANSWERS if name != "answered"])
@pytest.mark.parametrize("form", FORMATS)
def test_training_refuses_them_with_their_place(
    form: str, missing: str, tmp_path: Path, tokenizer: Any, make_plan: Any
) -> None:
    answers = ("yes", ANSWERS[missing], "yes")
    file = write(tmp_path, "a.jsonl", [FORMATS[form](answer) for answer in answers])
    with pytest.raises(UsageError) as error:
        chat_datasets(make_plan("a.jsonl"), tokenizer)
    assert [problem.where for problem in error.value.problems] == [f"{file}:2", ""]


@pytest.mark.parametrize("form", FORMATS)
def test_predicting_takes_them_and_evaluates_on_the_others(
    form: str, tmp_path: Path, tokenizer: Any, make_plan: Any
) -> None:
    names = list(ANSWERS)
    file = write(tmp_path, "a.jsonl", [FORMATS[form](ANSWERS[name]) for name in names])
    plan = make_plan("", eval_dataset="a.jsonl", do_predict=True)
    plan.stage.component.supports_prediction = True
    data = chat_datasets(plan, tokenizer)
    assert [place.line for place in data.eval.places] == [1]
    (counts,) = data.accounting.eval
    assert (counts.rows, counts.kept, counts.left_out) == (5, 1, 4)
    assert [place.line for place in counts.untrainable[NO_ANSWER]] == [2, 3, 4, 5]
    assert counts.tokens == counts.used + counts.cut + counts.left
    samples = [sample for _, sample in read_samples(plan.eval_datasets[0], plan, questions=True)]
    assert [isinstance(sample, Chat) and sample.messages[-1].role for sample in samples] == ["assistant", *["user"] * 4]
    again = chat_datasets(plan, tokenizer)  # from the cache, which the same rows without do_predict do not share
    assert again.accounting == data.accounting
    with pytest.raises(UsageError, match=f"{file}:2"):
        chat_datasets(make_plan("", eval_dataset="a.jsonl"), tokenizer)


def test_nothing_but_prompts(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    file = write(tmp_path, "a.jsonl", [{"instruction": "q?", "output": ""}, {"instruction": "and?"}])

    def plan(**more: Any) -> Any:
        made = make_plan("", eval_dataset="a.jsonl", do_predict=True, **more)
        made.stage.component.supports_prediction = True
        return made

    data = chat_datasets(plan(), tokenizer)
    assert data.eval is None
    assert data.accounting.eval[0].left_out == 2
    with pytest.raises(UsageError) as error:
        chat_datasets(plan(do_eval=True), tokenizer)
    assert str(error.value) == (
        f"{file}:1: dataset '{file.name}' has no answers to evaluate on; "
        "remove do_eval and eval_strategy: do_predict alone accepts prompts without answers"
    )


def test_a_prompt_that_is_too_long_is_left_out_as_ever(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    write(tmp_path, "a.jsonl", [{"instruction": "q " * 200, "output": ""}, {"instruction": "and?", "output": ""}])
    plan = make_plan("", eval_dataset="a.jsonl", do_predict=True, cutoff_len=50)
    plan.stage.component.supports_prediction = True
    untrainable = chat_datasets(plan, tokenizer).accounting.eval[0].untrainable
    assert {why: [place.line for place in places] for why, places in untrainable.items()} == {
        next(why for why in untrainable if why != NO_ANSWER): [1],
        NO_ANSWER: [2],
    }


def test_preferences_and_answers_that_are_wrong_otherwise(
    tmp_path: Path, tokenizer: Any, make_plan: Any, write_config: Any, built_in: Any
) -> None:
    """An empty answer is none; a number is a mistake, to those who ask too."""
    write(tmp_path, "pairs.jsonl", [OTHERS["preference"]("yes"), OTHERS["preference"]("")])
    with pytest.raises(UsageError, match=r"pairs\.jsonl:2: chosen is empty"):
        pair_datasets(make_plan("pairs.jsonl", samples="Preference"), tokenizer)
    file = write(tmp_path, "odd.jsonl", [{"instruction": "q?", "output": "a"}, {"instruction": "q?", "output": 5}])
    plan = real_plan(write_config(do_train=False, dataset=...), plugins=built_in)
    with pytest.raises(UsageError, match=r"odd\.jsonl:2: output is a number, not a string"):
        dataset_prompts(str(file), plan, None)
    samples = list(read_samples(make_plan("odd.jsonl").datasets[0], make_plan("odd.jsonl"), questions=True))
    assert isinstance(samples[1][1], RowError)
