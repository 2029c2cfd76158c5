"""do_predict: what is answered, what is written, and how it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ft_plugins.stages.sft.text_metrics import scores
from ftcore.config.planner import make_plan
from ftcore.errors import UsageError
from ftcore.inference.answers import collect
from ftcore.inference.prompts import text_prompt
from ftcore.inference.target import find_target
from ftcore.runner.run import run

ROWS = [("hello world", "one two three"), ("who are you? " * 5, "a tiny model"), ("你好", "我是一个很小的模型。")]


def predicted(model: Path, folder: Path, **values: Any) -> Path:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in ROWS), encoding="utf-8")
    given = {
        "model_name_or_path": str(model),
        "eval_dataset": str(data),
        "do_predict": True,
        "predict_with_generate": True,
        "do_sample": False,
        "max_new_tokens": 8,
        "template": "chatml",
        "output_dir": str(folder / "out"),
    }
    assert run(make_plan(None, values=given | values)) == 0
    return folder / "out"


def lines(folder: Path) -> list[dict[str, str]]:
    text = (folder / "generated_predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_answers_are_those_of_ft_generate(method: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    out = predicted(tiny_model_dir, tmp_path, finetuning_type=method)
    words = ("do_sample=false", "max_new_tokens=8", "template=chatml")
    generator = find_target(None, model=str(tiny_model_dir), overrides=words).load()
    answers = collect(generator.stream([text_prompt(question) for question, _ in ROWS]), len(ROWS))
    assert lines(out) == [
        {
            "prompt": f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            "predict": answer.text,
            "label": label,
        }
        for (question, label), answer in zip(ROWS, answers, strict=True)
    ]
    results = json.loads((out / "predict_results.json").read_text())
    expected = scores([answer.text for answer in answers], [label for _, label in ROWS])
    assert {name: results[f"predict_{name}"] for name in expected} == expected
    assert results.keys() >= {"predict_runtime", "predict_samples_per_second"}
    assert json.loads((out / "all_results.json").read_text()) == results
    assert not (out / "eval_results.json").exists()


@pytest.mark.slow
def test_after_training_the_trained_weights_answer(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "rows.jsonl")
    options = {"dataset": data, "do_train": True, "num_train_epochs": 60, "learning_rate": 5e-3}
    out = predicted(tiny_model_dir, tmp_path, finetuning_type="full", max_new_tokens=24, **options)
    assert [row["predict"] for row in lines(out)] == [label for _, label in ROWS]
    results = json.loads((out / "predict_results.json").read_text())
    assert [results[f"predict_{name}"] for name in ("bleu-4", "rouge-1", "rouge-l")] == pytest.approx([100] * 3)


def test_rows_that_val_size_splits_off(tiny_model_dir: Path, tmp_path: Path) -> None:
    options = {"dataset": str(tmp_path / "rows.jsonl"), "eval_dataset": None, "val_size": 1}
    (row,) = lines(predicted(tiny_model_dir, tmp_path, finetuning_type="full", **options))
    assert row["label"] in [label for _, label in ROWS]


@pytest.mark.parametrize("answered", [1, 0])
def test_rows_without_an_answer_are_answered_and_not_measured(
    answered: int, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": q, "output": a} for q, a in ROWS[:answered]]
    rows += [{"instruction": "hello", "output": ""}, {"instruction": "who?", "output": None}, {"instruction": "and?"}]
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    out = predicted(tiny_model_dir, tmp_path, finetuning_type="full", eval_dataset=str(tmp_path / "asked.json"))
    written = lines(out)
    assert [row["label"] for row in written] == [a for _, a in ROWS[:answered]] + [None] * 3
    assert [row["prompt"].partition("user\n")[2].partition("<|im_end|>")[0] for row in written] == [
        row["instruction"] for row in rows
    ]
    results = json.loads((out / "predict_results.json").read_text())
    measured = (
        scores([row["predict"] for row in written[:answered]], [a for _, a in ROWS[:answered]]) if answered else {}
    )
    assert {name: value for name, value in results.items() if "bleu" in name or "rouge" in name} == {
        f"predict_{name}": value for name, value in measured.items()
    }
    assert results["predict_without_label"] == 3
    what = "they are not in the metrics" if answered else "no metrics are computed"
    said = capsys.readouterr().out
    assert f"predictions: 3 of {3 + answered} rows have no answer to compare with: {what}" in said
    assert "untrainable: 3 rows, no answer: used for prediction, not for evaluation" in said


def test_scores_by_hand() -> None:
    found = scores(["the cat sat"], ["the cat ran"])
    assert (found["rouge-1"], found["rouge-2"], found["rouge-l"]) == pytest.approx((200 / 3, 50, 200 / 3))
    chinese = scores(["我来到北京清华大学"], ["我来到北京清华大学。"])  # 我 来到 北京 清华大学
    assert chinese["rouge-1"] == chinese["rouge-l"] == pytest.approx(100)
    assert chinese["bleu-4"] == pytest.approx(100 * 2.718281828459045 ** (1 - 5 / 4))
    assert scores([""], ["x"]) == {"bleu-4": 0, "rouge-1": 0, "rouge-2": 0, "rouge-l": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"predict_with_generate": False}, "do_predict is true, and predict_with_generate is false"),
        ({"do_predict": False}, "predict_with_generate is true, and do_predict is false"),
        ({"eval_dataset": None}, "do_predict needs evaluation data, and there is none"),
        ({"stage": "dpo"}, "stage 'dpo' cannot predict"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], message: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        predicted(tiny_model_dir, tmp_path, **values)


@pytest.mark.slow
@pytest.mark.parametrize("trains", [True, False])
def test_a_signal_ends_it_with_a_line(
    trains: bool, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM while it answers; the same command goes on to what a run in peace writes."""
    import os
    import signal

    from ft_plugins.engines.transformers.generator import TransformersGenerator
    from ftcore.training.callbacks.signals import InterruptedRunError

    options: dict[str, Any] = {"finetuning_type": "lora", "bf16": False}
    if trains:
        options |= {"dataset": str(tmp_path / "stopped" / "rows.jsonl"), "do_train": True, "max_steps": 2}
    for name in ("stopped", "whole"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(TransformersGenerator, "_generate", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(InterruptedRunError) as error:
            predicted(tiny_model_dir, tmp_path / "stopped", **options)
    saved = f"; the trained weights are in {tmp_path}/stopped/out" if trains else ""
    assert str(error.value) == f"stopped by SIGTERM while predicting{saved}; the same command repeats this"
    assert error.value.exit_code == 143
    assert not (tmp_path / "stopped" / "out" / "generated_predictions.jsonl").exists()
    again = lines(predicted(tiny_model_dir, tmp_path / "stopped", **options))
    assert again == lines(predicted(tiny_model_dir, tmp_path / "whole", **options))


@pytest.mark.slow
def test_the_evaluations_own_generation(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Beams and length of these answers: those that the generation options would give, which stay what they are."""

    def words(name: str, **values: Any) -> list[str]:
        (tmp_path / name).mkdir()
        out = predicted(tiny_model_dir, tmp_path / name, max_new_tokens=None, **values)
        return [row["predict"] for row in lines(out)]

    plain = words("plain", max_length=100)
    assert words("length", generation_max_length=100) == plain
    assert words("shorter", generation_max_length=90, max_length=100) == words("short", max_length=90) != plain
    beams = words("beams", max_length=100, num_beams=3)
    for number, option in enumerate(("generation_num_beams", "eval_num_beams")):
        assert words(f"own{number}", max_length=100, **{option: 3}) == beams != plain
