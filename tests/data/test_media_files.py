"""Images, videos and audio beside rows: every placeholder has its file, in every format and for every kind of row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ft_plugins.formats import FORMATS
from ftcore.api.samples import Chat, Feedback, Preference, Sample
from ftcore.data.formats.detection import read_samples, row_problem
from ftcore.data.multimodal.media_files import PLACEHOLDERS
from ftcore.errors import RowError, UsageError

Row = dict[str, Any]


def _asked(question: str) -> list[Row]:
    return [{"role": "user", "content": question}]


def _told(question: str) -> list[Row]:
    return [{"from": "human", "value": question}]


_ANSWER, _GPT = {"role": "assistant", "content": "r"}, {"from": "gpt", "value": "r"}
_PAIR, _MARK = {"chosen": "c", "rejected": "d"}, {"kto_tag": True}
ROWS: Mapping[tuple[str, str], Callable[[str], Row]] = {
    ("instruction", "Chat"): lambda question: {"instruction": question, "output": "r"},
    ("instruction", "Prompt"): lambda question: {"input": question, "instruction": ""},
    ("instruction", "Preference"): lambda question: {"instruction": question, **_PAIR},
    ("instruction", "Feedback"): lambda question: {"instruction": question, "output": "r", **_MARK},
    ("instruction", "Text"): lambda question: {"instruction": question},
    ("messages", "Chat"): lambda question: {"messages": [*_asked(question), _ANSWER]},
    ("messages", "Prompt"): lambda question: {"messages": _asked(question)},
    ("messages", "Preference"): lambda question: {"messages": _asked(question), **_PAIR},
    ("messages", "Feedback"): lambda question: {"messages": [*_asked(question), _ANSWER], **_MARK},
    ("sharegpt", "Chat"): lambda question: {"conversations": [*_told(question), _GPT]},
    ("sharegpt", "Prompt"): lambda question: {"conversations": _told(question)},
    ("sharegpt", "Preference"): lambda question: {"conversations": _told(question), **_PAIR},
    ("sharegpt", "Feedback"): lambda question: {"conversations": [*_told(question), _GPT], **_MARK},
    ("completion", "Chat"): lambda question: {"prompt": question, "completion": "r"},
    ("completion", "Prompt"): lambda question: {"prompt": question},
    ("completion", "Preference"): lambda question: {"prompt": question, **_PAIR},
    ("completion", "Feedback"): lambda question: {"prompt": question, "completion": "r", **_MARK},
    ("completion", "Text"): lambda question: {"prompt": question},
    ("text", "Text"): lambda question: {"text": question},
}
"""(format, what its rows are read as) -> a row with this question."""
FILES = {"images": "a.jpg", "videos": "a.mp4"}


@pytest.fixture
def samples(tmp_path: Path, make_plan: Any) -> Callable[..., list[Sample | str]]:
    """``samples(rows, kind, description)``: what becomes of the rows, their problems as texts."""
    for name in FILES.values():
        (tmp_path / name).write_bytes(b"")

    def read(rows: list[Row], kind: str, **description: Any) -> list[Sample | str]:
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        info = {"d": {"file_name": "a.jsonl"} | description}
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        plan = make_plan("d", samples=kind, template=None)
        found = read_samples(plan.datasets[0], plan)
        return [
            str(row_problem(place, one)).replace(f"{tmp_path}/", "") if isinstance(one, RowError) else one
            for place, one in found
        ]

    return read


def _images(sample: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    chat = sample.prompt if isinstance(sample, Preference) else sample.chat if isinstance(sample, Feedback) else sample
    assert isinstance(chat, Chat)
    return chat.images, chat.videos


def test_every_format_is_walked() -> None:
    assert {name for name, _ in ROWS} == {one.name for one in FORMATS}


@pytest.mark.parametrize("role", PLACEHOLDERS)
@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_a_placeholder_without_a_file_is_an_error(name: str, kind: str, role: str, samples: Any) -> None:
    single, row = role.removesuffix("s"), ROWS[name, kind]
    bad, plain = row(f"what is {PLACEHOLDERS[role]}?"), row("what?")
    rows = [plain, bad, bad | {role: None}, bad | {single: None}, bad | {role: "", single: ""}]
    first, *others = samples(rows, kind)
    assert not isinstance(first, str)
    reason = f"the text has {PLACEHOLDERS[role]}, and the row has no {role}; "
    assert [problem.partition("; ")[0] + "; " for problem in others] == [
        f"a.jsonl:{line}: {reason}" for line in range(2, 6)
    ]
    assert all(f'"columns": {{"{role}": ""}}' in problem for problem in others)


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_a_placeholder_is_text_where_the_dataset_has_no_such_column(name: str, kind: str, samples: Any) -> None:
    row = ROWS[name, kind]("<image> and <video>, <audio>") | {"image": "a.jpg", "audios": ["a.wav"]}
    (found,) = samples([row], kind, columns=dict.fromkeys(PLACEHOLDERS, ""))
    if kind != "Text":
        assert _images(found) == ((), ())
    assert not isinstance(found, str)


@pytest.mark.parametrize("role", FILES)
@pytest.mark.parametrize(("name", "kind"), [key for key in ROWS if key[1] != "Text"])
def test_files_under_either_name_one_or_many(name: str, kind: str, role: str, samples: Any, tmp_path: Path) -> None:
    single, placeholder, file = role.removesuffix("s"), PLACEHOLDERS[role], FILES[role]
    one, two = ROWS[name, kind](f"{placeholder}q"), ROWS[name, kind](f"{placeholder}q{placeholder}")
    rows = [one | {key: value} for key in (role, single) for value in (file, [file])]
    rows += [two | {single: [file, file]}, one | {role: None, single: file}, one | {role: file, single: []}]
    found = samples(rows, kind)
    path = str(tmp_path / file)
    expected = [(path,), (path,), (path,), (path,), (path, path), (path,), (path,)]
    assert [_images(sample)[role == "videos"] for sample in found] == expected


@pytest.mark.parametrize("role", FILES)
@pytest.mark.parametrize(("name", "kind"), [key for key in ROWS if key[1] == "Text"])
def test_files_beside_a_text_are_an_error(name: str, kind: str, role: str, samples: Any) -> None:
    row, single = ROWS[name, kind], role.removesuffix("s")
    rows = [row("t"), *(row(text) | {key: FILES[role]} for key in (role, single) for text in ("t", PLACEHOLDERS[role]))]
    first, *others = samples(rows, kind)
    assert not isinstance(first, str)
    assert len(others) == 4
    assert all(isinstance(problem, str) and ", and this run reads plain text" in problem for problem in others)


def test_two_columns_of_images_are_an_error(samples: Any) -> None:
    row = {"prompt": "<image>q", "completion": "r", "images": ["a.jpg"], "image": "a.jpg"}
    (found,) = samples([row], "Chat")
    assert found.startswith("a.jsonl:1: the row has images and image; name the column to read")
    (found,) = samples([row], "Chat", columns={"images": "image"})
    assert _images(found)[0][0].endswith("a.jpg")


def test_a_column_of_another_role_is_no_image(samples: Any) -> None:
    (found,) = samples(
        [{"image": "q", "completion": "r"}], "Chat", formatting="completion", columns={"prompt": "image"}
    )
    assert _images(found) == ((), ())


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "q", "chosen": "<image>", "rejected": "d"}, "Preference"),
        ({"prompt": "q", "chosen": "c", "rejected": "<image>"}, "Preference"),
        ({"prompt": "q", "completion": "<image>"}, "Chat"),
        ({"prompt": "q", "completion": [{"role": "assistant", "content": "a", "reasoning": "<image>"}]}, "Chat"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": "r"}, "Chat"),
        ({"prompt": "q", "completion": "r", "system": "<image>"}, "Chat"),
        ({"instruction": "q", "output": "r", "history": [["a", "<image>"]]}, "Chat"),
    ],
)
def test_wherever_it_stands(row: Row, kind: str, samples: Any) -> None:
    (found,) = samples([row], kind)
    assert found.startswith("a.jsonl:1: the text has <image>, and the row has no images; ")


def test_streams_say_so_too(tmp_path: Path, tokenizer: Any, make_plan: Any) -> None:
    from ftcore.data.pipeline.loading import chat_datasets
    from ftcore.data.pipeline.streaming import Cursor

    (tmp_path / "a.jsonl").write_text('{"prompt": "<image>q", "completion": "r"}\n' * 3)
    plan = make_plan("a.jsonl", streaming=True)
    with pytest.raises(UsageError, match=r"a.jsonl:1: the text has <image>, and the row has no images"):
        next(chat_datasets(plan, tokenizer).train.items(Cursor()))
