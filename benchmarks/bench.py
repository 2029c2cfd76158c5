"""``make bench``: ft beside its peers, by turns, on the same rows; prints a table and writes JSON and a picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measures import TOLERANCE, Measured, differences, ratios, read, table
from rows import MISSING, ROWS, SHARED, Row

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".bench"  # the peers' environments, the adapter, the results


def make_data(row: Row, data: Path, folder: Path, steps: int) -> None:
    """The rows of ``steps`` batches, drawn with seed 0."""
    every = json.loads((data / row.data).read_text(encoding="utf-8"))
    drawn = random.Random(0).sample(every, row.batch * steps)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(drawn), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")


def make_start(model: Path, folder: Path) -> Path:
    """The adapter from which both sides begin: fresh ones would be drawn differently."""
    if not (folder / "adapter_config.json").is_file():
        code = (
            "import sys, torch; from peft import LoraConfig, get_peft_model;"
            "from transformers import AutoModelForCausalLM;"
            "torch.manual_seed(0); model = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
            "config = LoraConfig(r=8, lora_alpha=16, target_modules='all-linear', task_type='CAUSAL_LM');"
            "get_peft_model(model, config).save_pretrained(sys.argv[2])"
        )
        peer = CACHE / "llamafactory/bin/python"  # the older peft: each can read what it writes
        subprocess.run([peer, "-c", code, model, folder], check=True)
    return folder


def measure(side: str, command: list[str], options: dict[str, Any], folder: Path, threads: int) -> Measured:
    """One process of one side, from its start to its end.

    Raises:
        SystemExit: when the process fails.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an earlier measurement's output would be resumed or refused
    folder.mkdir(parents=True)
    events, file = folder / "events.jsonl", folder / "run.yaml"
    file.write_text(json.dumps(options | {"output_dir": str(folder / "out")}), encoding="utf-8")  # JSON is YAML, too
    paths = [str(HERE / "probe"), *os.environ.get("PYTHONPATH", "").split(":")]
    if side != "ft":
        paths = [str(HERE / "probe"), str(HERE / "peers" / "llamafactory")]
    environment = os.environ | {
        "PYTHONPATH": ":".join(path for path in paths if path),
        "FT_BENCH_EVENTS": str(events),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of packages that are there and newer
    }
    with (folder / "output.txt").open("w") as output:
        done = subprocess.run([*command, str(file)], env=environment, stdout=output, stderr=output)
    if done.returncode:
        raise SystemExit(f"{side} ended with {done.returncode}: see {folder / 'output.txt'}")
    return read(events)


def compare(row: Row, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides of a row by turns.

    Raises:
        SystemExit: when they do not do the same work, before any speed is printed.
    """
    data = arguments.out / "data" / row.work
    make_data(row, arguments.data, data, arguments.steps)
    start = make_start(arguments.model, CACHE / "adapter")
    both = {
        **SHARED,
        **row.options,
        "model_name_or_path": str(arguments.model),
        "adapter_name_or_path": str(start),
        "dataset_dir": str(data),
        "per_device_train_batch_size": row.batch,
        "max_steps": arguments.steps,
    }
    own = [str(Path(sys.executable).with_name("ft")), "run"]
    peer = [str(CACHE / "llamafactory/bin/llamafactory-cli"), "train"]
    ours, theirs = [], []
    for turn in range(arguments.turns):
        folder = arguments.out / f"{row.work}-{ROWS.index(row)}" / str(turn)
        ours.append(measure("ft", own, both, folder / "ft", arguments.threads))
        extra = {"report_to": "none", "use_cpu": True, **row.peer}
        theirs.append(measure("peer", peer, both | extra, folder / "peer", arguments.threads))
        off = differences(ours[-1], theirs[-1])
        if max(off.values()) > TOLERANCE:
            raise SystemExit(f"{row.work}: not the same work as {row.against}: {off}, {ours[-1]}, {theirs[-1]}")
    found: dict[str, Any] = {"work": row.work, "against": row.against, "target": row.target, "differences": off}
    found |= {clock: ratios(ours, theirs, clock) for clock in ("cpu", "wall")}
    found["memory"] = median(our.peak / their.peak for our, their in zip(ours, theirs, strict=True))
    return found | {"ft": [vars(one) for one in ours], "peer": [vars(one) for one in theirs]}


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Median ratios of CPU time as bars, the targets as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.7 * len(results)), layout="constrained")
    names = [f"{result['work']}: {result['against']}" for result in results]
    axes.barh(names, [median(result["cpu"]) for result in results])
    axes.scatter([result["target"] for result in results], names, marker="|", s=400, color="black", label="target")
    axes.set_xlabel("CPU time of a step, peer / ft")
    axes.legend()
    figure.savefig(file)


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="only this work's rows")
    parser.add_argument("--model", type=Path, default=Path("~/.cache/ft/models/smollm2-135m").expanduser())
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=CACHE / "results")
    parser.add_argument("--steps", type=int, default=3, help="the first of them warms up")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.steps < 2 or arguments.turns < 1:
        parser.error("--steps is at least 2, of which the first warms up, and --turns at least 1")
    rows = [row for row in ROWS if arguments.work in (None, row.work)]
    if not rows:
        parser.error(f"no work {arguments.work!r}; there are: {', '.join(sorted({row.work for row in ROWS}))}")
    results = [compare(row, arguments) for row in rows]
    print(table(results))
    print("not measured yet: " + "; ".join(MISSING))
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "threads": arguments.threads}
    written = json.dumps(machine | {"rows": results}, indent=1)
    (arguments.out / "bench.json").write_text(written + "\n", encoding="utf-8")
    draw(results, arguments.out / "bench.png")


if __name__ == "__main__":
    main()
