"""The benchmark's own arithmetic, without its peers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import bench
from measures import Measured, differences, ratios, read, spread, table
from rows import ROWS


def measured(cpu: tuple[float, ...], loss: float = 2.0, norm: float = 1.0) -> Measured:
    wall = tuple(2 * seconds for seconds in cpu)
    return Measured(cpu=cpu, wall=wall, peak=100, start=1.0, loss=loss, norm=norm)


def events(file: Path, steps: int) -> Path:
    lines = []
    for step in range(steps):
        now = {"step": step, "peak": 10 + step}
        lines.append(now | {"event": "on_step_begin", "cpu": 10.0 * step, "wall": 20.0 * step})
        lines.append(now | {"event": "on_step_end", "cpu": 10.0 * step + step, "wall": 20.0 * step + 2 * step})
        lines.append(lines[-1] | {"event": "on_log", "loss": 2.5 - step, "grad_norm": 1.5})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_the_first_step_warms_up_and_gives_loss_and_norm(tmp_path: Path) -> None:
    assert read(events(tmp_path / "events.jsonl", 3)) == Measured(
        cpu=(1.0, 2.0), wall=(2.0, 4.0), peak=12, start=0.0, loss=2.5, norm=1.5
    )


def test_one_step_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 steps; a warm-up step and a measured one are needed"):
        read(events(tmp_path / "events.jsonl", 1))


def test_ratios_go_step_by_step_through_the_turns() -> None:
    ours, theirs = [measured((1.0, 2.0)), measured((2.0, 4.0))], [measured((4.0, 6.0)), measured((4.0, 20.0))]
    assert ratios(ours, theirs, "cpu") == [4.0, 3.0, 2.0, 5.0]
    assert spread(ratios(ours, theirs, "cpu")) == "3.50x (2.00 to 5.00)"


def test_differences_are_relative() -> None:
    off = differences(measured((1.0,), loss=2.0002, norm=1.0), measured((1.0,)))
    assert off == {"loss": pytest.approx(1e-4), "norm": 0.0}


def test_the_table() -> None:
    result = {"work": "sft", "against": "peer", "target": 4.0, "memory": 0.5, "cpu": [3.0, 5.0], "wall": [2.0]}
    assert table([result | {"differences": {"loss": 1e-7, "norm": 2e-6}}]).splitlines() == [
        "| work | against | at least | CPU time | wall | peak memory | loss, norm differ by |",
        "|---|---|---|---|---|---|---|",
        "| sft | peer | 4.0x | 4.00x (3.00 to 5.00) | 2.00x (2.00 to 2.00) | 0.50x | 1e-07, 2e-06 |",
    ]


def test_rows_have_names_of_their_own() -> None:
    assert len({(row.work, row.against) for row in ROWS}) == len(ROWS)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, theirs: Measured) -> None:
    """The whole command, the two programs replaced by their numbers."""
    rows = [{"instruction": "add", "input": str(number), "output": "two"} for number in range(30)]
    (folder / "alpaca_en_demo.json").write_text(json.dumps(rows), encoding="utf-8")
    given: dict[str, Measured] = {"ft": measured((1.0, 2.0)), "peer": theirs}
    monkeypatch.setattr(bench, "measure", lambda side, *rest: given[side])
    monkeypatch.setattr(bench, "make_start", lambda model, start: start)
    out = ["--out", str(folder / "out"), "--data", str(folder), "--turns", "2"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--work", "sft", *out])
    bench.main()


def test_the_command_prints_a_table_and_writes_json_and_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, tmp_path, measured((4.0, 8.0)))
    printed = capsys.readouterr().out
    assert printed.count("4.00x (4.00 to 4.00)") == 2 * len(ROWS)
    assert "not measured yet: sft lora against TRL" in printed
    written = json.loads((tmp_path / "out" / "bench.json").read_text("utf-8"))
    assert [row["cpu"] for row in written["rows"]] == [[4.0] * 4] * len(ROWS)
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "out" / "data" / "sft" / "rows.json").read_text("utf-8"))) == 24


def test_no_speed_is_printed_when_the_work_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="not the same work"):
        run(monkeypatch, tmp_path, measured((4.0, 8.0), norm=1.0002))
    assert capsys.readouterr().out == ""
