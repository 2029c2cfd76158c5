"""``ft preview``: whole outputs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

import ft_plugins.formats
import ft_plugins.templates
import ftcore
from ftcore.api.components import ChatTemplate
from ftcore.api.option_groups import DataOptions, TrainingOptions
from ftcore.api.plan import Plan
from ftcore.api.registry import Candidate, load
from ftcore.cli.preview import command
from ftcore.config import planner
from ftcore.data.sources.resolve import resolve
from ftcore.errors import UsageError
from ftcore.testing import CHATML, tiny_tokenizer

ROWS = [
    {"instruction": "hi", "output": "Hello."},
    {"instruction": "a\x1b[31mb", "output": "c " * 30},
    {"instruction": "d " * 40, "output": "e"},
]


class Tokenizers:
    """A plugin that loads the tiny tokenizer."""

    own: str | None = None

    @ftcore.hookimpl
    def ft_load_tokenizer(self, plan: Any) -> Any:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = self.own
        return tokenizer


class HandMadePlan(SimpleNamespace):
    """What the command reads of a plan."""

    where = Plan.where


@pytest.fixture
def preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``preview("-n", "1", cutoff_len=30)``: the command over a hand-made plan of a.jsonl."""

    def run(*arguments: str, rows: Any = ROWS, samples: str = "Chat", packs: bool = False, **options: Any) -> Any:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        modules = {"formats": ft_plugins.formats, "templates": ft_plugins.templates, "models": Tokenizers()}
        plugins = load([Candidate("ftcore", "0", name, lambda m=module: m) for name, module in modules.items()])
        datasets, _ = resolve(["a.jsonl"], dataset_dir=tmp_path)
        plan = HandMadePlan(
            file="run.yaml",
            config={},
            data=DataOptions(**options),
            stage=SimpleNamespace(
                component=SimpleNamespace(
                    name="train", samples=(samples,), packs_by_default=packs, supports_images=False
                )
            ),
            training=TrainingOptions(),
            template=SimpleNamespace(component=plugins.find(ChatTemplate, "chatml").component),
            options={},
            source=None,
            model=SimpleNamespace(model_name_or_path="none", model_revision="main", cache_dir=None),
            plugins=plugins,
            datasets=datasets,
            eval_datasets=(),
        )
        monkeypatch.setattr(planner, "make_plan", lambda file, overrides: plan)
        result = CliRunner().invoke(command, ["run.yaml", *arguments])
        return SimpleNamespace(output=result.output.replace(f"{tmp_path}/", ""), error=result.exception)

    return run


def size(tokens: str) -> int:
    return len(tiny_tokenizer()(tokens)["input_ids"])


FIRST = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_rows_in_brackets(preview: Any) -> None:
    found = preview("-n", "1")
    assert found.error is None
    total, trained = size(FIRST + "Hello.<|im_end|>\n"), size("Hello.<|im_end|>")
    assert found.output == (
        "⟦ ⟧ trained, ⟨ ⟩ cut off at cutoff_len\n"
        f"── a.jsonl:1  {total} tokens, {trained} trained\n"
        f"{FIRST}⟦Hello.<|im_end|>⟧\n"
        f"a.jsonl: 1 of 1 rows, {total} tokens, {trained} trained ({trained / total:.1%})\n"
    )


@pytest.mark.slow
def test_what_is_odd_about_the_template_comes_first(preview: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run: whoever looks at rows wants to know that they are not what the model was made with."""
    monkeypatch.setattr(Tokenizers, "own", CHATML.replace("message['role'] + '\n'", "message['role'] + ': '"))
    finding = (
        "run.yaml: template chatml differs from the tokenizer's own: at token 3, after '<|im_start|>user', it renders"
        " '\\nHi<|im_end|>\\n<|im_start|>', the tokenizer's own ': Hi<|im_end|>\\n';"
        " leave template out to use the tokenizer's own, or set template_check: off"
    )
    assert preview("-n", "1").output.splitlines()[0] == f"warning: {finding}"
    assert str(preview("-n", "1", template_check="error").error) == finding
    assert preview("-n", "1", template_check="off").output.startswith("⟦ ⟧ trained")


def test_cut_rows_and_control_characters(preview: Any) -> None:
    found = preview("-n", "0", cutoff_len=50)
    lines = found.output.split("\n")
    (second,) = (number for number, line in enumerate(lines) if line.startswith("── a.jsonl:2"))
    assert lines[second].endswith(" cut off")
    assert lines[second + 1 : second + 4] == ["<|im_start|>user", "a␛[31mb<|im_end|>", "<|im_start|>assistant"]
    kept, cut = lines[second + 4].removeprefix("⟦").removesuffix("⟧").split("⟧⟨")
    assert (kept + cut.removesuffix("⟩")).strip() == "c " * 30 + "<|im_end|>"
    assert any(
        line.startswith("── a.jsonl:3  0 tokens, 0 trained")
        and line.endswith("not trained: its prompt is longer than cutoff_len")
        for line in lines
    )
    assert "\x1b" not in found.output


def test_json(preview: Any) -> None:
    found = preview("--json", cutoff_len=50)
    rows = [json.loads(line) for line in found.output.splitlines()]
    assert [row["source"] for row in rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    first, second, third = rows
    tokenizer = tiny_tokenizer()
    assert list(first) == [
        "source",
        "text",
        "input_ids",
        "labels",
        "reasons",
        "truncated",
        "untrainable",
        "without_thought",
    ]
    assert first["text"] == tokenizer.decode(first["input_ids"]) == FIRST + "Hello.<|im_end|>\n"
    assert tokenizer.decode([label for label in first["labels"] if label != -100]) == "Hello.<|im_end|>"
    by_reason: dict[str, list[int]] = {}
    for token, reason in zip(first["input_ids"], first["reasons"], strict=True):
        by_reason.setdefault(reason, []).append(token)
    assert {reason: tokenizer.decode(ids) for reason, ids in by_reason.items()} == {
        "template": "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n\n",
        "user": "hi",
        "assistant": "Hello.",
        "end-of-turn": "<|im_end|>",
    }
    assert (first["truncated"], first["untrainable"]) == (0, None)
    assert second["truncated"] == size(second["text"]) - len(second["input_ids"]) > 0
    assert (third["input_ids"], third["untrainable"]) == ([], "its prompt is longer than cutoff_len")


def test_stats(preview: Any) -> None:
    found = preview("--stats", cutoff_len=50)
    assert found.output.startswith("a.jsonl: 2 of 3 rows, ")
    counts = json.loads(preview("--stats", "--json", cutoff_len=50).output)
    assert counts["train"]["a.jsonl"]["kept"] == 2


def test_bad_rows(preview: Any) -> None:
    rows = [{"instruction": "hi", "output": ""}, ROWS[0], {"x": 1}]
    bad = 'a.jsonl:1: output is empty: there is nothing to train on: ""; write the answer in output, or remove the row'
    found = preview("-n", "2", rows=rows)
    assert bad in found.output.split("\n")
    assert isinstance(found.error, UsageError)
    assert [str(problem).rpartition("/")[2] for problem in found.error.problems] == [
        bad,
        "1 bad row; correct the rows, or set on_bad_row: skip to leave them out",
    ]
    found = preview("--json", rows=rows, on_bad_row="skip")
    assert found.error is None
    assert json.loads(found.output.splitlines()[0]) == {"source": "a.jsonl:1", "error": bad}


def test_colours(preview: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    found = preview("-n", "1")
    assert "⟦" not in found.output
    assert "\x1b[1;4;32mHello.\x1b[0m\x1b[1;4;35m<|im_end|>\x1b[0m" in found.output
    assert click.unstyle(found.output).split("\n")[0] == (
        "trained: underlined  assistant end-of-turn text user system tool history template truncated "
    )
    monkeypatch.setenv("NO_COLOR", "1")
    assert f"{FIRST}⟦Hello.<|im_end|>⟧\n" in preview("-n", "1").output


PAIR = {"instruction": "hi", "chosen": "Hello.", "rejected": "No " * 9}


def test_preferences_one_above_the_other(preview: Any) -> None:
    found = preview(rows=[PAIR], samples="Preference")
    assert found.error is None
    total = size(FIRST + "Hello.<|im_end|>\n") + size("No " * 9 + "<|im_end|>\n")
    trained = size("Hello.<|im_end|>") + size("No " * 9 + "<|im_end|>")
    assert found.output == (
        "⟦ ⟧ trained, ⟨ ⟩ cut off at cutoff_len\n"
        f"── a.jsonl:1  {total} tokens, {trained} trained\n"
        f"{FIRST}─ chosen\n"
        "⟦Hello.<|im_end|>⟧\n"
        "─ rejected\n"
        f"⟦{'No ' * 9}<|im_end|>⟧\n"
        f"a.jsonl: 1 of 1 rows, {total} tokens, {trained} trained ({trained / total:.1%})\n"
    )


def test_preferences_side_by_side(preview: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = [line.rstrip() for line in click.unstyle(preview(rows=[PAIR], samples="Preference").output).split("\n")]
    assert lines[2:5] == FIRST.rstrip().split("\n")
    assert lines[5:9] == [
        "chosen".ljust(35) + "┃ rejected",
        "━" * 35 + "╇" + "━" * 34,
        "Hello.<|im_end|>".ljust(35) + "│ No No No No No No No No No",
        " " * 35 + "│ <|im_end|>",
    ]
    monkeypatch.setenv("COLUMNS", "50")
    assert "─ rejected" in click.unstyle(preview(rows=[PAIR], samples="Preference").output).split("\n")


def test_preferences_as_json(preview: Any) -> None:
    (line,) = preview("--json", rows=[PAIR], samples="Preference").output.splitlines()
    row = json.loads(line)
    assert list(row) == ["source", "chosen", "rejected", "shared", "untrainable", "without_thought"]
    assert row["shared"] == size(FIRST)
    tokenizer = tiny_tokenizer()
    for side, answer in (("chosen", "Hello."), ("rejected", "No " * 9)):
        one = row[side]
        assert list(one) == ["text", "input_ids", "labels", "reasons", "truncated"]
        assert one["text"] == tokenizer.decode(one["input_ids"]) == f"{FIRST}{answer}<|im_end|>\n"
        assert tokenizer.decode([label for label in one["labels"] if label != -100]) == f"{answer}<|im_end|>"


def test_pairs_that_are_not_trained(preview: Any) -> None:
    found = preview(rows=[PAIR, PAIR | {"chosen": "x", "rejected": "x"}], samples="Preference").output
    (line,) = (line for line in found.split("\n") if line.startswith("── a.jsonl:2"))
    assert line.startswith("── a.jsonl:2  0 tokens, 0 trained, ")
    assert line.endswith("  not trained: chosen and rejected are the same")


def test_feedback(preview: Any) -> None:
    rows = [{"instruction": "hi", "output": "Hello.", "kto_tag": good} for good in (True, False)]
    found = preview(rows=rows, samples="Feedback")
    heads = [line.split("  ")[0] for line in found.output.split("\n") if line.startswith("── ")]
    assert heads == ["── a.jsonl:1", "── a.jsonl:2"]
    assert [line.split("  ")[1] for line in found.output.split("\n") if line.startswith("── ")] == [
        "good answer",
        "bad answer",
    ]
    shown = [json.loads(line) for line in preview("--json", rows=rows, samples="Feedback").output.splitlines()]
    assert [row["good"] for row in shown] == [True, False]


def test_texts_with_their_borders(preview: Any) -> None:
    rows = [{"text": "one\ntwo<|im_end|>"}, {"text": "three"}]
    found = preview(rows=rows, samples="Text")
    assert [line for line in found.output.split("\n") if not line.startswith("── ")][1:-2] == [
        "⟦one",
        "two<|im_end|><|im_end|>⟧",
        "⟦three<|im_end|>⟧",
    ]
    (first, _) = (json.loads(line) for line in preview("--json", rows=rows, samples="Text").output.splitlines())
    assert first["reasons"] == ["text"] * (len(first["input_ids"]) - 1) + ["end-of-turn"]


def test_a_dataset_of_another_kind(preview: Any) -> None:
    found = preview(rows=[PAIR])
    assert isinstance(found.error, UsageError)
    assert "holds preferences (chosen and rejected); stage 'train' needs conversations" in str(found.error)


def test_without_a_tokenizer(preview: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Tokenizers, "ft_load_tokenizer")
    assert str(preview().error) == "run.yaml: no plugin can load this model's tokenizer"


def test_packs_with_their_borders(preview: Any) -> None:
    answers = ["one", "two " * 12, "three", "four"]
    rows = [{"instruction": f"q{number}", "output": answer} for number, answer in enumerate(answers)]
    sizes = [
        size(f"<|im_start|>user\nq{n}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n") for n, a in enumerate(answers)
    ]
    room = sizes[0] + sizes[2]
    found = preview("-n", "1", rows=rows, packing=True, cutoff_len=max(room, sizes[1]))
    lines = found.output.split("\n")
    assert lines[0].startswith("━━ pack 1: ")
    borders = [line for line in lines if line.startswith("── a.jsonl:")]
    assert borders[0] == f"── a.jsonl:1  {sizes[0]} tokens"
    assert len(borders) > 1
    assert lines[2:6] == ["<|im_start|>user", "q0<|im_end|>", "<|im_start|>assistant", "⟦one<|im_end|>⟧"]
    assert lines[-3].startswith("a.jsonl: 4 of 4 rows, ")
    assert "4 rows in " in lines[-2]
    packs = [json.loads(line) for line in preview("-n", "0", "--json", rows=rows, packing=True).output.splitlines()]
    assert [len(pack["rows"]) for pack in packs] == [4]
    assert packs[0]["tokens"] == sum(sizes)
    first = packs[0]["rows"][0]
    assert (first["source"], first["start"], len(first["input_ids"])) == ("a.jsonl:1", 0, sizes[0])
    trained = [label for label in first["labels"] if label >= 0]
    assert tiny_tokenizer().decode(trained) == "one<|im_end|>"


def test_split_texts_show_where_they_go_on(preview: Any) -> None:
    found = preview("-n", "0", rows=[{"text": "word " * 40}], samples="Text", packs=True, cutoff_len=30)
    borders = [line for line in found.output.split("\n") if line.startswith("── ")]
    assert borders[0] == "── a.jsonl:1  30 tokens"
    assert borders[1] == "── a.jsonl:1 from token 30 on  30 tokens"
    plain = preview("--stats", rows=[{"text": "word " * 40}], samples="Text", packs=True, cutoff_len=30)
    assert "truncated" not in plain.output
