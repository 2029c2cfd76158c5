"""How much of what the machine can do is done: useful FLOPs of a step, and its best matrix products at their shapes.

``python utilisation.py TOKENS LABELS CONFIG`` prints the products' FLOPs and seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CHUNK = 256
"""Rows of the head's products, at most: larger ones are no faster per row."""
REPEATS = 5
LASTING = 0.1
"""Seconds of a measurement: a thread's CPU time is noted at the kernel's ticks, and of products of 6 ms on two threads
as little as that of one of them was counted."""


def linears(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a Llama layer's linear layers."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    size = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = size * config["num_attention_heads"], size * config["num_key_value_heads"]
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def useful(config: Mapping[str, Any], lengths: Sequence[int], labels: int, rank: int, common: int = 0) -> float:
    """FLOPs that a LoRA step on these sequences needs, a multiplication and an addition being two.

    Forward: every linear layer, the adapters, causal attention, the head where a label is. Backward: gradients of
    inputs (not of the first layer's, below which nothing is trained), of the adapters, of attention without the
    scores' recomputation, and of the head's inputs; no gradient of a frozen weight. The ``common`` tokens that all
    sequences begin with are needed once.
    """
    again, layers = len(lengths) - 1, config["num_hidden_layers"]
    tokens = sum(lengths) - again * common
    shapes = linears(config)
    products = sum(inputs * outputs for inputs, outputs in shapes.values())
    first = sum(shapes[name][0] * shapes[name][1] for name in ("q_proj", "k_proj", "v_proj"))
    dense = 2 * tokens * (2 * layers * products - first)
    adapters = 6 * tokens * layers * rank * sum(inputs + outputs for inputs, outputs in shapes.values())
    attention = 6 * layers * shapes["q_proj"][1] * (sum(length * length for length in lengths) - again * common**2)
    head = 4 * labels * config["hidden_size"] * config["vocab_size"]
    return float(dense + adapters + attention + head)


def shapes(config: Mapping[str, Any], tokens: int, labels: int) -> Iterator[tuple[int, int, int, float]]:
    """Rows, inputs, outputs and number of the matrix products of a step, forward and backward, without adapters."""
    for inputs, outputs in linears(config).values():
        yield tokens, inputs, outputs, config["num_hidden_layers"]
        yield tokens, outputs, inputs, config["num_hidden_layers"]
    rows = min(labels, CHUNK)
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield rows, hidden, vocabulary, labels / rows
    yield rows, vocabulary, hidden, labels / rows


def best_products(config: Mapping[str, Any], tokens: int, labels: int) -> dict[str, float]:
    """FLOPs of these products, and the CPU and wall seconds that the machine's fastest way takes for them."""
    flops, cpu, wall = 0.0, 0.0, 0.0
    for rows, inputs, outputs, count in shapes(config, tokens, labels):
        flops += 2.0 * rows * inputs * outputs * count
        times = [_time(way) for way in _ways(rows, inputs, outputs)]
        cpu += count * min(one[0] for one in times)
        wall += count * min(one[1] for one in times)
    return {"flops": flops, "cpu": cpu, "wall": wall}


def _ways(rows: int, inputs: int, outputs: int) -> list[Callable[[], Any]]:
    """MKL's product, with the weight stored either way, and oneDNN's."""
    import torch

    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    turned = weight.t().contiguous()
    own = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    ways: list[Callable[[], Any]] = [lambda: torch.nn.functional.linear(x, weight), lambda: x @ turned]
    return ways if own is None else [*ways, lambda: own(x, weight, None, "none", [], "")]


def _time(way: Callable[[], Any]) -> tuple[float, float]:
    """The least CPU and wall seconds of `REPEATS` measurements, after one that warms up."""
    way()
    begun = time.perf_counter()
    way()
    count = max(1, round(LASTING / (time.perf_counter() - begun)))
    found = []
    for _ in range(REPEATS):
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            way()
        found.append(((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count))
    return min(one[0] for one in found), min(one[1] for one in found)


def main() -> None:
    """Reads the command line."""
    import torch

    config = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    with torch.no_grad():
        print(json.dumps(best_products(config, int(sys.argv[1]), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
