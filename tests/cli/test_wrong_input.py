"""Wrong input: each answered with its place and its cure, exit status 2, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftcore.api import registry as plugin_module
from ftcore.api.components import ChatTemplate
from ftcore.cli import main

GOOD = {"instruction": "question", "output": "answer"}


@pytest.fixture
def answer(tmp_path: Path, tiny_model_dir: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``answer(text, data=..., **values)``: what ``ft run`` says on standard error; it must end with 2."""
    monkeypatch.chdir(tmp_path)

    def run(text: str = "", *, data: str | bytes | None = None, name: str = "rows.json", **values: Any) -> list[str]:
        if data is None:
            data = json.dumps([GOOD])
        Path(name).write_bytes(data if isinstance(data, bytes) else data.encode())
        base = {"model_name_or_path": str(tiny_model_dir), "do_train": True, "dataset": name, "template": "chatml"}
        lines = [f"{key}: {json.dumps(value)}" for key, value in (base | {"output_dir": "out"} | values).items()]
        Path("x.yaml").write_text("\n".join(lines) + "\n" + text)
        with pytest.raises(SystemExit) as end:
            main(["run", "x.yaml"])
        assert end.value.code == 2
        assert not Path("out").exists()
        return [line.removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]

    return run


def test_an_unknown_key(answer) -> None:
    assert answer("learning_rat: 1\n") == ["x.yaml:6: unknown option 'learning_rat'; did you mean learning_rate?"]


def test_two_unknown_keys_and_a_bad_value(answer) -> None:
    assert answer("lora_rnk: 1\nseed: x\nqqqqqq: 1\n") == [
        "x.yaml:6: unknown option 'lora_rnk'; did you mean lora_rank, lora_target or vllm_max_lora_rank?",
        "x.yaml:7: seed: input should be a valid integer, unable to parse string as an integer, found 'x'",
        "x.yaml:8: unknown option 'qqqqqq'; ft options lists all options",
    ]


def test_an_unknown_template(answer) -> None:
    (line,) = answer(template="chatmll")
    assert line.startswith("x.yaml:4: unknown chat template 'chatmll'; did you mean chatml")


def test_a_missing_configuration(capsys, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", str(tmp_path / "none.yaml")])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none.yaml: the file does not exist\n"


def test_a_missing_dataset(answer) -> None:
    (line,) = answer(dataset="nowhere.json")
    assert line.startswith("x.yaml:3: ")
    assert "nowhere.json" in line


def test_json_cut_off_in_the_middle(answer) -> None:
    lines = answer(data='[\n{"instruction": "q", "output": "a"},\n{"instruction": "q", "outp')
    assert len(lines) == 1
    assert lines[0].startswith("rows.json:3")


def test_a_row_without_output(answer) -> None:
    lines = answer(data=json.dumps([GOOD, {"instruction": "q"}], indent=0))
    assert lines[0].startswith("rows.json:6")
    assert "output" in lines[0]
    assert lines[-1] == "1 bad row; correct the rows, or set on_bad_row: skip to leave them out"


def test_roles_out_of_turn(answer) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "user", "assistant")]
    lines = answer(name="rows.jsonl", data=json.dumps({"messages": turns}) + "\n")
    assert lines[0].startswith("rows.jsonl:1")
    assert "messages[1]" in lines[0]


def test_an_empty_file(answer) -> None:
    (line,) = answer(data="")
    assert line.startswith("rows.json")
    assert "empty" in line


def test_a_wrong_encoding(answer) -> None:
    (line,) = answer(data='[{"instruction": "é", "output": "a"}]'.encode("latin-1"))
    assert line.startswith("rows.json:1")
    assert "UTF-8" in line


def with_more(monkeypatch: pytest.MonkeyPatch, **plugins: Any) -> None:
    own = [candidate for candidate in plugin_module.installed() if candidate.distribution == "ftcore"]

    def loader(plugin: Any) -> Callable[[], Any]:
        def load() -> Any:
            if isinstance(plugin, BaseException):
                raise plugin
            return plugin

        return load

    more = [plugin_module.Candidate(name, "1.0", "plugin", loader(plugin)) for name, plugin in plugins.items()]
    monkeypatch.setattr(plugin_module, "installed", lambda: [*own, *more])


def test_a_plugin_that_raises_on_import_and_is_needed(answer, monkeypatch: pytest.MonkeyPatch) -> None:
    with_more(monkeypatch, acme=RuntimeError("boom"))
    (line,) = answer(template="acmetalk")
    assert line.startswith("x.yaml:4: unknown chat template 'acmetalk'; ")
    assert line.endswith("plugin acme/plugin is broken and may contain it: import failed: RuntimeError: boom")


def test_two_plugins_that_offer_the_same_template(answer, monkeypatch: pytest.MonkeyPatch, hooks) -> None:
    def offer() -> list[ChatTemplate]:
        return [ChatTemplate(name="zap", summary="a test's", text="{{ messages }}")]

    with_more(monkeypatch, acme=hooks(ft_chat_templates=offer), blob=hooks(ft_chat_templates=offer))
    assert answer(template="zap") == [
        "x.yaml:4: chat template 'zap' is registered by acme and blob; write the full name: acme:zap or blob:zap"
    ]


def test_several_bad_datasets_are_told_together(answer) -> None:
    Path("more.jsonl").write_text('{"messages": []}\n')
    lines = answer(data="", dataset="rows.json,more.jsonl")
    assert len(lines) == 3
    assert lines[0].startswith("rows.json")
    assert lines[1].startswith("more.jsonl:1")
