"""``make bench``: ft beside its peers, by turns, on the same rows; prints a table and writes JSON and a picture."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from comparing import Bench, compare
from measures import table
from programs import HERE, Setting
from rows import WORKS, Work
from start import make_adapters, make_model

CACHE = HERE.parent / ".bench"  # the peers' environments, the model, the adapters, the results


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Median ratios of CPU time as bars, the targets as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = [result for result in results if "cpu" in result]
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.4 * len(shown)), layout="constrained")
    names = [f"{result['work']}, {result['span']}\n{result['against']}" for result in shown]
    axes.barh(names, [median(result["cpu"]) for result in shown], color="tab:blue", height=0.6)
    axes.scatter([result["target"] for result in shown], names, marker="|", s=300, color="black", label="target")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("CPU time, peer / ft")
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)


def machine(threads: int) -> dict[str, Any]:
    """Where this ran."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").is_file()
        else iter(()),
        platform.processor(),
    )
    return {"machine": platform.platform(), "processor": model, "cores": os.cpu_count(), "threads": threads}


def write(results: list[dict[str, Any]], facts: dict[str, Any], out: Path) -> None:
    """``bench.json``, ``bench.md`` and ``bench.png``, after each work, so that a stopped run leaves what it has."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(facts | {"rows": results}, indent=1) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(table(results) + "\n", encoding="utf-8")
    draw(results, out / "bench.png")


def progress(done: list[Work], left: list[Work], spent: float, turns: int | None) -> str:
    """The minutes that are left: what works take on two quiet cores, times how much slower it has been so far."""

    def expected(works: list[Work]) -> float:
        return sum(work.seconds * (turns or work.turns) for work in works)

    slower = spent / expected(done) if done else 1.0
    return f"about {slower * expected(left) / 60:.0f} min left"


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="only these works, comma separated: " + ", ".join(work.name for work in WORKS))
    parser.add_argument("--model", type=Path, default=Path("~/.cache/ft/models/smollm2-135m").expanduser())
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=CACHE / "results")
    parser.add_argument("--llamafactory", type=Path, default=CACHE / "llamafactory", help="its virtual environment")
    parser.add_argument("--trl", type=Path, default=CACHE / "trl", help="its virtual environment")
    parser.add_argument("--steps", type=int, help="instead of each work's own number; the first one warms up")
    parser.add_argument("--quick", action="store_true", help="only try that it runs: shortest rows, one turn, 2 steps")
    parser.add_argument("--turns", type=int, help="instead of each work's own number")
    parser.add_argument("--threads", type=int, default=2)
    found = parser.parse_args(words)
    names = [work.name for work in WORKS]
    found.works = found.work.split(",") if found.work else names
    if unknown := [name for name in found.works if name not in names]:
        parser.error(f"no work {unknown[0]!r}; there are: {', '.join(names)}")
    if found.turns is not None and found.turns < 1:
        parser.error("--turns is at least 1")
    if found.steps is not None and found.steps < 2:
        parser.error("--steps is at least 2, of which the first warms up")
    found.turns = found.turns or (1 if found.quick else None)
    found.steps = found.steps or (2 if found.quick else None)
    return found


def main() -> None:
    """Measures what the command line says."""
    arguments = arguments_of()
    setting = Setting(
        llamafactory=arguments.llamafactory.absolute(),
        trl=arguments.trl.absolute(),
        model=make_model(arguments.model, CACHE / "model"),
        adapters=CACHE / "adapters",
        threads=arguments.threads,
    )
    make_adapters(setting)

    def say(line: str) -> None:
        print(line, flush=True)

    bench = Bench(
        setting=setting,
        data=arguments.data,
        out=arguments.out,
        turns=arguments.turns,
        steps=arguments.steps,
        quick=arguments.quick,
        say=say,
    )
    works = [work for work in WORKS if work.name in arguments.works]
    results: list[dict[str, Any]] = []
    begun, facts = time.monotonic(), machine(arguments.threads)
    for number, work in enumerate(works):
        left = progress(works[:number], works[number:], time.monotonic() - begun, arguments.turns)
        say(f"[{number + 1}/{len(works)}] {work.title}; {left}")
        results += compare(bench, work)
        write(results, facts, arguments.out)
    say(f"\n{table(results)}\n\n{facts['processor']}, {facts['threads']} threads; written to {arguments.out}")


if __name__ == "__main__":
    main()
