"""Times that ft promises on one thread: ``python benchmarks/promises.py``; exit status 1 where one is not kept.

The tests count work instead, since a busy machine lengthens every time. Run this on an idle one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from ft_plugins.backends.cpu import matmul_autotune
from ft_plugins.optimizers.blockwise import BlockwiseAdamW
from ftcore.config.planner import make_plan
from ftcore.testing import tiny_model
from ftcore.training.batching.collators import collate
from ftcore.training.forward.causal_lm import CausalLMForward

sys.path.insert(0, str(Path(__file__).parent))
from template_writers import writers


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], turns: int) -> float:
    """Median CPU seconds of the one as a multiple of the other's, by turns; the first turn is not counted."""
    spent: tuple[list[float], list[float]] = [], []
    for _ in range(turns + 1):
        for times, function in zip(spent, (ours, theirs), strict=True):
            begun = time.process_time()
            function()
            times.append(time.process_time() - begun)
    return median(spent[0][1:]) / median(spent[1][1:])


def quantised_steps(folder: Path) -> Iterator[tuple[str, float, float]]:
    """42 million parameters, 512 tokens."""
    shape = {"hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 9, "num_attention_heads": 10}
    model_dir = tiny_model(folder / "model", num_key_value_heads=5, **shape)
    ids = np.random.default_rng(0).integers(3, 400, 512).astype(np.int32)
    batch = collate([{"input_ids": ids, "weights": np.ones(512, np.float32), "index": 0}])
    scorers = {}
    for bits in (None, 4, 8):
        values = {"model_name_or_path": str(model_dir), "output_dir": str(folder / "out"), "quantization_bit": bits}
        plan = make_plan(None, values=values)
        kwargs = {"dtype": torch.float32} | plan.method.component.load_kwargs(plan)
        model = plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)
        scorers[bits] = CausalLMForward(plan.method.component.apply(plan, model).train())
        scorers[bits].probe_capabilities()

    def step(bits: int | None) -> Callable[[], None]:
        return lambda: scorers[bits].weighted_nll(batch).backward()

    for bits in (4, 8):
        yield f"a step over weights of {bits} bits, as a multiple of lora's", ratio(step(bits), step(None), 5), 2


def optimizer_step() -> Iterator[tuple[str, float, float]]:
    """Over four million parameters. With more threads fused AdamW waits for memory, and the ratio is about 3."""
    parameters = [torch.nn.Parameter(torch.randn(2_000_000)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    ours, fused = BlockwiseAdamW(parameters, optim_bits=8, **options), torch.optim.AdamW(parameters, fused=True)
    yield "a step of adamw_8bit, as a multiple of fused AdamW's", ratio(ours.step, fused.step, 15), 6


def template_checks() -> Iterator[tuple[str, float, float]]:
    """Of a conversation with ChatML."""
    checked, bare = (lambda write=write: [write() for _ in range(200)] for write in writers(4))
    yield "a template with checks, as a multiple of the bare one", ratio(checked, bare, 5), 3


def product_measuring() -> Iterator[tuple[str, float, float]]:
    begun = time.process_time()
    matmul_autotune._measured()
    yield "seconds of the first run for measuring its products", time.process_time() - begun, 1


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            *template_checks(),
            *product_measuring(),
            *optimizer_step(),
            *quantised_steps(Path(folder)),
        ]
    for name, measured, most in found:
        print(json.dumps({"promise": name, "measured": round(measured, 2), "at_most": most}))
    return int(any(measured > most for _, measured, most in found))


if __name__ == "__main__":
    sys.exit(main())
