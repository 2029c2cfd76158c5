"""The benchmark's own arithmetic and its turns, without its peers."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import bench
import comparing
import data
import programs
from comparing import Bench, compare
from data import Agreed, agreeing, bins, shortest, typical, write_rows
from measures import Measured, differences, ratios, read, spread, table
from programs import FailedError, Setting, flat, reason, trl_options
from rows import WORKS, Peer, Work
from start import TEMPLATE, make_model
from utilisation import best_products, linears, shapes, useful

LLAMA = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 32,
}


def measured(cpu: tuple[float, ...], loss: float = 2.0, norm: float = 1.0, peak: int = 100) -> Measured:
    many = len(cpu)
    return Measured(
        cpu=cpu,
        wall=tuple(2 * seconds for seconds in cpu),
        before_cpu=0.5,
        before_wall=1.0,
        peak=peak,
        start=1.0,
        begun=0.0,
        losses=(loss,) * many,
        norms=(norm,) * many,
    )


def events(file: Path, steps: int) -> Path:
    lines: list[dict[str, Any]] = [{"event": "on_init_end", "cpu": 4.0, "wall": 5.0, "peak": 1, "children": 0.5}]
    for step in range(steps):
        now = {"step": step, "peak": 10 + step, "children": 0.5}
        lines.append(now | {"event": "on_step_begin", "cpu": 10.0 + step, "wall": 20.0 + step})
        lines.append(now | {"event": "on_step_end", "cpu": 10.5 + step, "wall": 20.5 + 2 * step})
        lines.append(now | {"event": "on_log", "cpu": 0, "wall": 0, "loss": 2.5 - step, "grad_norm": 1.5})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def test_steps_end_so_many_seconds_after_the_trainer_was_made(tmp_path: Path) -> None:
    found = read(events(tmp_path / "events.jsonl", 3))
    assert found == Measured(
        cpu=(6.5, 7.5, 8.5),
        wall=(15.5, 17.5, 19.5),
        before_cpu=6.0,
        before_wall=15.0,
        peak=12,
        start=10.5,
        begun=20.0,
        losses=(2.5, 1.5, 0.5),
        norms=(1.5, 1.5, 1.5),
    )
    assert found.each_step("wall") == [2.0, 2.0]
    assert found.epochs(3, 1, "cpu") == 8.5
    assert found.epochs(5, 1, "cpu") == 8.5 + 2 * 1.0, "as long as the last measured epoch, the third"
    assert found.epochs(2, 3, "cpu") == 8.5 + 2.5, "what comes before the first step comes once"
    assert found.epochs(1, 2, "wall") == 17.5


def test_no_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no step was taken"):
        read(events(tmp_path / "events.jsonl", 0))


def test_ratios_go_step_by_step_through_the_turns_or_over_a_span() -> None:
    ours, theirs = [measured((1.0, 2.0, 4.0)), measured((2.0, 4.0, 5.0))], [measured((1.0, 5.0, 11.0))] * 2
    assert ratios(ours, theirs, "cpu") == [4.0, 3.0, 2.0, 6.0]
    assert ratios(ours, theirs, "wall", epochs=2) == [2.5, 1.25]
    assert spread([4.0, 3.0, 2.0, 6.0]) == "3.50x (2.00 to 6.00)"


def test_differences_are_relative() -> None:
    off = differences(measured((1.0,), loss=2.0002, norm=1.0), measured((1.0,)))
    assert off == {"losses": pytest.approx(1e-4), "norms": 0.0}
    scaled = differences(measured((1.0,), loss=4.0, norm=2.0), measured((1.0,)), scale=2.0)
    assert scaled == {"losses": 0.0, "norms": 0.0}


def test_the_table() -> None:
    result = {"work": "sft", "against": "peer", "span": "step", "target": 4.0, "memory": 0.5, "memory_target": 0.6}
    result |= {"cpu": [3.0, 5.0], "wall": [2.0], "differences": {"losses": 1e-7, "norms": 2e-6}}
    failed = {"work": "rm", "against": "peer", "error": "trl ended with 1"}
    assert table([result, failed]).splitlines()[1:] == [
        "|---|---|---|---|---|---|---|---|",
        "| sft | peer | step | 4.00x | 4.00x (3.00 to 5.00) | 2.00x (2.00 to 2.00) | 0.50x (0.60x) | 1e-07, 2e-06 |",
        "| rm | peer |  |  | not measured: trl ended with 1 |  |  |  |",
    ]


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_every_span_of_every_work_has_a_target(work: Work) -> None:
    spans = set(work.spans) or {"start": {"start"}, "preprocessing": {"rows"}}.get(work.kind, {"step"})
    for peer in work.peers:
        assert set(peer.targets) == spans
        assert peer.memory in (0.6, 1.15)
    assert work.steps % work.batches == 0
    assert work.kind in comparing.KINDS


def test_names_are_their_own() -> None:
    assert len({work.name for work in WORKS}) == len(WORKS)
    assert all(len({peer.name for peer in work.peers}) == len(work.peers) for work in WORKS)


# ---- the rows ----


def rows(*lengths: int) -> list[Agreed]:
    return [Agreed(number, (length,), (length // 2,)) for number, length in enumerate(lengths)]


def test_packs_are_counted_as_best_fit_decreasing_makes_them() -> None:
    assert bins([6, 5, 4, 3, 2], size=10) == 2
    assert bins([6, 6, 6], size=10) == 3


def test_the_typical_batch_is_like_the_mean_one() -> None:
    assert sorted(row.tokens for row in typical(rows(10, 10, 10, 10, 500), 2)) == [10, 10]
    assert [row.tokens for row in shortest(rows(30, 10, 20), 2)] == [10, 20]
    several = typical(rows(10, 11, 12, 13, 500), 2, batches=2)
    assert sorted(row.number for row in several) == [0, 1, 2, 3], "no row twice"
    with pytest.raises(ValueError, match="5 rows make no 3 batches of 2"):
        typical(rows(10, 11, 12, 13, 500), 2, batches=3)


def test_a_batch_for_packs_fills_them() -> None:
    found = typical(rows(500, 520, 700, 300, 1000), 3, packs=2)
    assert sum(row.tokens for row in found) == 2020
    with pytest.raises(ValueError, match="no 3 rows of 2000 draws fit 1 packs"):
        typical(rows(500, 520, 700), 3, packs=1)


def setting(folder: Path) -> Setting:
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    (model / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    return Setting(llamafactory=folder / "lf", trl=folder / "trl", model=model, adapters=folder / "adapters", threads=1)


def encoded(monkeypatch: pytest.MonkeyPatch, ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    def call(setting: Setting, program: str, words: list[Any], folder: Path, extra: Any = None) -> str:
        found = ours if program == "ft" else theirs
        words[-1].write_text("".join(json.dumps(row) + "\n" for row in found.items()), encoding="utf-8")
        return ""

    monkeypatch.setattr(data, "call", call)


def test_rows_that_the_programs_encode_differently_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = [{"instruction": "add", "output": str(number)} for number in range(4)]
    folder = write_rows(data, {}, tmp_path / "in")
    (folder / "dataset_info.json").write_text(json.dumps({"alpaca_en_demo": {"file_name": "rows.json"}}))
    alike, long = [[[1, 2, 3], [0, 1, 1]]], [[[1] * 1025, [1] * 1025]]
    other = [[[1, 2, 3], [0, 0, 1]]]
    encoded(monkeypatch, {0: alike, 1: alike, 2: long}, {0: alike, 1: other, 2: long, 3: alike})
    found, told = agreeing(setting(tmp_path), WORKS[0], folder, tmp_path / "out")
    assert found == [Agreed(0, (3,), (2,), found[0].opening)]
    assert len(found[0].opening) == 3
    assert told == "4 rows, 2 encoded differently or left out, 1 longer than 1024 tokens"


# ---- what the programs are given, and what they say ----


def test_the_reason_is_the_line_with_the_error() -> None:
    assert reason("Traceback\n  raise\nRuntimeError: no gradient\n  0%| 0/2\n") == "RuntimeError: no gradient"
    assert reason("killed\n\n") == "killed"
    assert reason("") == "it said nothing"


def test_both_programs_get_the_same_file_but_for_what_one_of_them_has(tmp_path: Path) -> None:
    where, work = setting(tmp_path), next(work for work in WORKS if work.name == "rm")
    ours, theirs = flat(where, work, None, tmp_path), flat(where, work, work.peers[0], tmp_path)
    assert {name: value for name, value in theirs.items() if ours.get(name) != value} == {
        "report_to": "none",
        "use_cpu": True,
        "adapter_name_or_path": str(tmp_path / "adapters" / "lora"),
    }
    trl = trl_options(where, work, work.peers[1], tmp_path)
    assert trl["adapter"] == ours["adapter_name_or_path"] == str(tmp_path / "adapters" / "score")
    assert trl["arguments"]["max_steps"] == ours["max_steps"]
    assert trl["arguments"]["learning_rate"] == ours["learning_rate"]


def test_the_models_folder_has_the_settings_that_make_the_programs_alike(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (source / name).write_text(json.dumps({"pad_token_id": 2, "kept": name}), encoding="utf-8")
    tokens = {"added_tokens": [{"id": 7, "content": "<|endoftext|>"}], "model": {"vocab": {}}}
    (source / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    (source / "model.safetensors").write_bytes(b"weights")
    for _ in range(2):  # a second call finds the first one's links
        folder = make_model(source, tmp_path / "model")
    found = {name: json.loads((folder / name).read_text("utf-8")) for name in ("config.json", "tokenizer_config.json")}
    assert found["config.json"] == {"pad_token_id": 7, "kept": "config.json", "summary_dropout_prob": 0.0}
    assert found["tokenizer_config.json"]["chat_template"] == TEMPLATE
    assert (folder / "model.safetensors").read_bytes() == b"weights"


# ---- utilisation ----


def test_useful_flops_are_those_that_torch_counts() -> None:
    """A float64 count by torch's own counter, of a step that computes everything densely, less what is not needed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    width, tokens, labels, rank = 8, 6, 4, 2
    x, head = torch.randn(tokens, width), torch.randn(32, width)
    with FlopCounterMode(display=False) as counter:
        for layer in range(LLAMA["num_hidden_layers"]):
            for name, (inputs, outputs) in linears(LLAMA).items():
                given = torch.randn(
                    tokens, inputs, requires_grad=layer > 0 or name not in ("q_proj", "k_proj", "v_proj")
                )
                (given @ torch.randn(inputs, outputs)).sum().backward() if given.requires_grad else given @ torch.randn(
                    inputs, outputs
                )
        hidden = x[:labels].clone().requires_grad_()
        (hidden @ head.t()).sum().backward()
    attention = 6 * 3 * width * (4 * 4 + 2 * 2)
    adapters = 6 * tokens * 3 * rank * sum(inputs + outputs for inputs, outputs in linears(LLAMA).values())
    assert useful(LLAMA, [4, 2], labels, rank) == counter.get_total_flops() + attention + adapters
    once, twice = useful(LLAMA, [5, 1], 0, rank), useful(LLAMA, [5, 5], 0, rank, common=4)
    attended = 6 * 3 * width * ((5 * 5 - 4 * 4) - 1 * 1)  # the second row's last token sees the four before it
    assert twice == once + attended


@pytest.mark.slow
def test_the_best_products_have_the_runs_shapes() -> None:
    found = list(shapes(LLAMA, 6, 300))
    assert (6, 8, 16, 3) in found
    assert (6, 16, 8, 3) in found
    assert found[-1] == (256, 32, 8, 300 / 256)
    products = best_products(LLAMA, 6, 4)
    dense = 2 * 2 * 6 * 3 * sum(inputs * outputs for inputs, outputs in linears(LLAMA).values())
    assert products["flops"] == dense + 2 * 2 * 4 * 8 * 32
    assert products["cpu"] > 0


# ---- steps by turns ----

TRAINER = """
class CallbackHandler:
    def call_event(self, event, args, state, control, **kwargs):
        return control
"""
"""In the place of ``transformers.trainer_callback``."""
PROGRAM = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from transformers.trainer_callback import CallbackHandler

name, steps, log = sys.argv[1], int(sys.argv[2]), sys.argv[3]
handler, state = CallbackHandler(), SimpleNamespace(global_step=0)
# a clock that goes on by one with each line
time.time = lambda: float(len(Path(log).read_text().splitlines()))

def note(what):
    with open(log, "a") as stream:
        stream.write(f"{name} {what}\\n")

handler.call_event("on_init_end", None, state, None)
for step in range(steps):
    note(f"begins {step}")
    handler.call_event("on_step_begin", None, state, None)
    handler.call_event("on_log", None, state, None, logs={"loss": 1.0, "grad_norm": 2.0})
    note(f"ends {step}")
    handler.call_event("on_step_end", None, state, None)
if name == "ft" and steps == 1:
    sys.exit("ValueError: no more")
"""


@pytest.mark.parametrize(("own", "why"), [(3, None), (1, "ft ended with 1: ValueError: no more")])
def test_two_programs_take_their_steps_by_turns(
    own: int, why: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "library" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "trainer_callback.py").write_text(TRAINER)
    (tmp_path / "program.py").write_text(PROGRAM)
    log = tmp_path / "log"
    log.touch()

    def train(setting: Setting, work: Work, peer: Peer | None, data: Path, folder: Path, extra: dict[str, str]) -> Path:
        folder.mkdir(parents=True)
        path = f"{Path(programs.__file__).parent / 'probe'}:{tmp_path / 'library'}"
        extra |= {"PYTHONPATH": path, "FT_BENCH_EVENTS": str(folder / "events.jsonl")}
        words = [sys.executable, tmp_path / "program.py", "peer" if peer else "ft", 3 if peer else own, log]
        programs.call(setting, "peer" if peer else "ft", words, folder, extra)
        return folder / "events.jsonl"

    monkeypatch.setattr(programs, "train", train)
    theirs, ours = programs.train_together(setting(tmp_path), WORKS[0], a_peer("one"), tmp_path, tmp_path / "turns")
    lines = log.read_text().splitlines()
    steps = [f"{name} {what} {step}" for step in range(own) for name in ("peer", "ft") for what in ("begins", "ends")]
    assert lines[: len(steps)] == steps
    assert len(lines) == 2 * (3 + own)
    assert isinstance(theirs, Path), theirs
    found = read(theirs)
    assert found.each_step("wall") == [2.0, 2.0], "waiting for the other's two lines is taken out"
    assert str(ours).startswith(why) if why else len(read(Path(str(ours))).wall) == 3


# ---- the whole command ----


class Programs:
    """Stand-ins: what each side's process would have measured, or how it fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, given: dict[str, Measured | str]) -> None:
        self.given, self.called = given, list[str]()
        monkeypatch.setattr(comparing, "train", self.train)
        monkeypatch.setattr(comparing, "train_together", self.together)
        monkeypatch.setattr(comparing, "read", self.read)
        monkeypatch.setattr(comparing, "agreeing", lambda *_: (rows(*range(10, 30)), "20 rows"))

    def train(
        self, setting: Setting, work: Work, peer: Peer | None, data: Path, folder: Path, extra: Any = None
    ) -> Path:
        name = peer.name if peer else "ft"
        self.called.append(name)
        return Path(name)

    def together(
        self, setting: Setting, work: Work, peer: Peer, data: Path, folder: Path
    ) -> tuple[Path | FailedError, Path | FailedError]:
        return self.train(setting, work, peer, data, folder), self.train(setting, work, None, data, folder)

    def read(self, file: Path) -> Measured:
        found = self.given[str(file)]
        if isinstance(found, str):
            raise FailedError(found)
        return found


def a_bench(folder: Path, said: list[str]) -> Bench:
    data = [{"instruction": "add", "input": str(number), "output": "two"} for number in range(30)]
    (folder / "alpaca_en_demo.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"alpaca_en_demo": {"file_name": "alpaca_en_demo.json"}}))
    return Bench(
        setting=setting(folder), data=folder, out=folder / "out", turns=2, steps=None, quick=False, say=said.append
    )


def a_peer(name: str) -> Peer:
    return Peer(name=name, program="trl", targets={"step": 2.0}, memory=0.6)


def test_turns_alternate_and_one_peers_failure_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {"ft": measured((1.0, 2.0)), "good": measured((4.0, 8.0), peak=200), "bad": "trl ended with 1: no memory"}
    programs = Programs(monkeypatch, given)
    work = replace(WORKS[0], peers=(a_peer("good"), a_peer("bad")), steps=2)
    good, bad = compare(a_bench(tmp_path, []), work)
    assert programs.called == ["good", "ft", "bad", "ft", "good", "ft"]
    assert (good["cpu"], good["wall"], good["memory"]) == ([4.0, 4.0], [4.0, 4.0], 0.5)
    assert bad["error"] == "trl ended with 1: no memory"
    assert len(json.loads((tmp_path / "out" / "data" / "sft" / "rows.json").read_text("utf-8"))) == 8


def test_no_speed_is_shown_when_the_work_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Programs(monkeypatch, {"ft": measured((1.0, 2.0)), "other": measured((4.0, 8.0), norm=1.0002)})
    (result,) = compare(a_bench(tmp_path, []), replace(WORKS[0], peers=(a_peer("other"),)))
    assert "cpu" not in result
    assert "not the same work: ft's and the peer's first step have loss 2 and 2, norm 1 and 1.0002" in result["error"]


def test_an_error_of_ft_stands_in_all_rows_of_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Programs(monkeypatch, {"ft": "ft ended with 2: no such option", "one": measured((4.0, 8.0))})
    (result,) = compare(a_bench(tmp_path, []), replace(WORKS[0], peers=(a_peer("one"),)))
    assert result["error"] == "ft ended with 2: no such option"


def test_spans_count_from_when_the_trainer_was_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"ft": measured((2.0, 3.0, 4.0)), "one": measured((4.0, 8.0, 16.0))}
    Programs(monkeypatch, given)
    peer = Peer(name="one", program="trl", targets={"one epoch": 2.0, "three epochs": 3.0}, memory=0.6)
    work = replace(WORKS[0], peers=(peer,), spans={"one epoch": 1, "three epochs": 3})
    first, third = compare(a_bench(tmp_path, []), work)
    assert (first["cpu"], first["target"]) == ([2.0, 2.0], 2.0)
    assert (third["cpu"], third["target"]) == ([4.0, 4.0], 3.0)


def test_fewer_steps_make_epochs_of_fewer_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Programs(monkeypatch, {"ft": measured((2.0, 3.0)), "one": measured((4.0, 9.0))})
    peer = Peer(name="one", program="trl", targets={"one epoch": 2.0, "three epochs": 3.0}, memory=0.6)
    work = replace(WORKS[0], peers=(peer,), batches=3, spans={"one epoch": 1, "three epochs": 3})
    one, three = compare(replace(a_bench(tmp_path, []), steps=2), work)
    assert one["cpu"] == [9.0 / 3.0] * 2
    assert three["cpu"] == [pytest.approx((9.0 + 2 * 8.5) / (3.0 + 2 * 2.5))] * 2
    rows = json.loads((tmp_path / "out" / "data" / "sft" / "rows.json").read_text("utf-8"))
    assert len(rows) == 16


def test_start_and_preprocessing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peer = replace(a_peer("one"), targets={"start": 1.4, "rows": 3.0})
    Programs(monkeypatch, {"ft": replace(measured((1.0,)), start=2.0), "one": replace(measured((1.0,)), start=3.0)})
    (result,) = compare(a_bench(tmp_path, []), replace(WORKS[0], kind="start", peers=(peer,)))
    assert result["cpu"] == [1.5, 1.5]
    seconds = iter([10.0, 110.0, 4.0, 24.0] * 2)  # the peer's few and many rows, ft's few and many

    def until(*_: Any) -> tuple[float, float]:
        return (value := next(seconds)), value

    monkeypatch.setattr(comparing, "until_first_step", until)
    monkeypatch.setattr(comparing, "MANY", 50)
    (result,) = compare(a_bench(tmp_path, []), replace(WORKS[0], kind="preprocessing", peers=(peer,)))
    assert result["cpu"] == [5.0, 5.0]
    many = json.loads((tmp_path / "out" / "data" / "sft" / "many" / "rows.json").read_text("utf-8"))
    assert len({row["instruction"] for row in many}) == 50


def test_the_share_of_the_best_products(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Programs(monkeypatch, {"ft": measured((1.0, 3.0))})
    monkeypatch.setattr(comparing, "call", lambda *_: '{"flops": 1e6, "cpu": 1.0, "wall": 2.0}')
    (result,) = compare(a_bench(tmp_path, []), replace(WORKS[0], kind="utilisation", peers=()))
    share = result["flops"] / 2.0 / 1e6
    assert result["cpu"] == [pytest.approx(share)] * 2
    assert result["wall"] == [pytest.approx(share)] * 2


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json_and_a_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_bench(tmp_path, [])
    Programs(monkeypatch, {"ft": measured((1.0, 2.0)), **{peer.name: measured((4.0, 8.0)) for peer in WORKS[0].peers}})
    monkeypatch.setattr(bench, "make_model", lambda source, folder: setting(tmp_path).model)
    monkeypatch.setattr(bench, "make_adapters", lambda setting: None)
    words = ["--work", "sft", "--out", str(tmp_path / "out"), "--data", str(tmp_path), "--turns", "2"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    bench.main()
    printed = capsys.readouterr().out
    assert "[1/1] sft lora, batch 8; about 20 min left" in printed
    assert printed.count("4.00x (4.00 to 4.00)") == 2 * len(WORKS[0].peers)
    written = json.loads((tmp_path / "out" / "bench.json").read_text("utf-8"))
    assert [row["cpu"] for row in written["rows"]] == [[4.0, 4.0]] * len(WORKS[0].peers)
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--work", "nothing"], ["--turns", "0"], ["--steps", "1"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments_of(words)
    assert {"--work": "there are: sft", "--turns": "at least 1", "--steps": "at least 2"}[words[0]] in (
        capsys.readouterr().err
    )


def test_works_are_chosen_by_name() -> None:
    assert bench.arguments_of(["--work", "sft,rm"]).works == ["sft", "rm"]
    quick = bench.arguments_of(["--quick"])
    assert (quick.turns, quick.steps) == (1, 2)
