"""docs/serving.md: its Python block runs, and its tables name options that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ftcore.api.option_groups import ServingOptions

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")


def test_the_block_talks_to_a_server(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    names: dict[str, Any] = {}
    exec(source.replace("http://127.0.0.1:8000", tiny.url), names)
    names["client"].close()
    assert capsys.readouterr().out == f"{names['answer'].choices[0].message.content}\n"


def test_options_and_their_defaults_are_those_of_the_page() -> None:
    shown = dict(re.findall(r"^\| `(serve_\w+)` ([\d.]+) (?!MiB)", PAGE, re.M))
    fields = ServingOptions.model_fields
    assert {name: str(fields[name].default).removesuffix(".0") for name in shown if name != "serve_host"} | {
        "serve_host": "127.0.0.1"
    } == shown
    assert fields["serve_max_body"].default == 1 << 20
    assert set(re.findall(r"serve_\w+", PAGE)) - set(fields) == set()
    assert set(fields) - set(re.findall(r"serve_\w+", PAGE)) == {"serve_name"}
