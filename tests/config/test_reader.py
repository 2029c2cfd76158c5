"""Reading YAML, JSON and key=value."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftcore.config.reader import read_settings
from ftcore.errors import UsageError


def read(tmp_path: Path, text: str, *overrides: str, name: str = "x.yaml") -> dict[str, object]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return {key: setting.value for key, setting in read_settings(tmp_path / name, overrides).items()}


def message(tmp_path: Path, text: str, *overrides: str, name: str = "x.yaml") -> str:
    with pytest.raises(UsageError) as error:
        read(tmp_path, text, *overrides, name=name)
    return str(error.value).replace(f"{tmp_path}/", "")


def test_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "a: 1e-4\nb: no\nc: [x, y]\nd: null\ne: 012\nf: 'q'\ng: true\nh: {k: 1}\ni: 2026-01-02\n"
    assert read(tmp_path, text) == {
        "a": 1e-4, "b": "no", "c": ["x", "y"], "d": None, "e": 12, "f": "q", "g": True, "h": {"k": 1},
        "i": "2026-01-02",
    }  # fmt: skip


def test_the_command_line_wins_and_each_value_knows_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# comment\na: 1\n\nb: 2\n")
    settings = read_settings(tmp_path / "x.yaml", ["b=3", "--c=[1,2]", "d="])
    places = {name: (setting.value, setting.where.rpartition("/")[2]) for name, setting in settings.items()}
    assert places == {
        "a": (1, "x.yaml:2"), "b": (3, "command line"), "c": ([1, 2], "command line"), "d": (None, "command line"),
    }  # fmt: skip


def test_json_has_lines_too(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{\n "a": 1,\n "b": {"c": [1]}\n}')
    settings = read_settings(tmp_path / "x.json")
    assert [(s.name, s.value, s.where.rpartition(":")[2]) for s in settings.values()] == [
        ("a", 1, "2"),
        ("b", {"c": [1]}, "3"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a is repeated, first on line 1; keep one"),
        ("- 1\n", "x.yaml:1: the file is not a mapping; write key: value lines"),
        ("", "x.yaml: the file is empty"),
        ("a: b: c\n", "x.yaml:1: not valid YAML: mapping values are not allowed here"),
        ("a: &x [*x]\n", "x.yaml: not valid YAML: an alias refers to a node that contains it"),
        ("-\n%YAML 0.0", "x.yaml: not valid YAML: the %YAML line names an unknown version; write 1.1 or 1.2"),
        (
            "%YAML 1.9\n---\na: 1",
            "x.yaml: not valid YAML: the %YAML line names an unknown version; write 1.1 or 1.2",
        ),
        ("a: {1: 2}\n", "x.yaml:1: the value of a cannot be read: keys must be text"),
        ("? [1]\n: 2\n", "x.yaml:1: a key must be plain text"),
    ],
)
def test_a_bad_file_is_answered_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert message(tmp_path, text) == expected


def test_tags_run_no_code(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f"a: !!python/object/apply:os.system ['touch {canary}']\n"
    assert message(tmp_path, text).startswith(
        "x.yaml:1: the value of a cannot be read: could not determine a constructor"
    )
    assert not canary.exists()


def test_a_billion_laughs_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert (
        message(tmp_path, "\n".join(lines))
        == "x.yaml: not valid YAML: with aliases expanded there are more than 20,000 values"
    )


def test_bad_json(tmp_path: Path) -> None:
    assert message(tmp_path, '{\n "a": 1,\n "b": [\n', name="x.json") == "x.json:4: not valid JSON: Expecting value"
    assert message(tmp_path, '{"a": 1, "a": 2}', name="x.json") == "x.json:1:10: a is repeated; keep one"
    assert message(tmp_path, "[1]", name="x.json") == 'x.json: the file is not an object; write {"key": value, ...}'


def test_a_missing_file_a_folder_and_a_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the file does not exist"):
        read_settings(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="it is not a file"):
        read_settings(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(UsageError, match="byte 3 is not UTF-8; save the file as UTF-8"):
        read_settings(tmp_path / "latin.yaml")


def test_bad_overrides_and_a_bad_file_are_told_together(tmp_path: Path) -> None:
    assert message(tmp_path, "a: 1\na: 2\n", "nonsense", "b=[") == (
        "x.yaml:2: a is repeated, first on line 1; keep one\n"
        "command line: 'nonsense' is not key=value; write for instance learning_rate=1e-4\n"
        "command line: the value of b cannot be read: expected the node content, but found '<stream end>'"
    )
