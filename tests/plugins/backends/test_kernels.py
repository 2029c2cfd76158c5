"""Every kernel of every built-in backend of this machine, against plain torch in float64.

A new kernel is tested without an edit here: `supports` decides what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from ft_plugins.backends import ft_backends
from ft_plugins.backends.cpu import attention_gemm, matmul
from ft_plugins.backends.cpu import linear_cross_entropy as tiled
from ftcore.api.plan import Backend
from ftcore.training.attention.kernel import AttentionCall, Rule
from ftcore.training.attention.layout import RowLayout
from ftcore.training.attention.plain import PLAIN
from ftcore.training.backend import BackendRuntime
from ftcore.training.losses import linear_cross_entropy as chunked
from ftcore.training.losses.linear_cross_entropy import CHUNKED, LMHead

BACKENDS = {backend.name: backend for backend in ft_backends()}
STATES: dict[str, list[dict[str, Any]]] = {
    "cpu": [dict.fromkeys(("forward", "backward", "attention"), taken) for taken in (False, True)]
}
"""`BackendRuntime.state_dict` of a backend in which its kernels take other ways; none for one that has no state."""
CLOSE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Largest difference of an output or a gradient, relative to its norm."""
DTYPES = st.sampled_from(list(CLOSE))


@pytest.fixture(params=[(name, number) for name in BACKENDS for number in range(len(STATES.get(name, [{}])))], ids=str)
def runtime(request: Any, plan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, str]]:
    """A runtime in one of its states, and the type of device on which it is tested. Limits of sizes are low."""
    name, number = request.param
    backend: Backend = BACKENDS[name]
    device = next((device for device in backend.devices or ("cpu",) if device == "cpu" or backend.present(device)), "")
    if not device:
        pytest.skip(f"no {' or '.join(backend.devices)} here")
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 1)
    monkeypatch.setattr(tiled, "TILE", (7, 11))
    monkeypatch.setattr(matmul, "SMALL", 1)
    monkeypatch.setattr(attention_gemm, "LEAST", 0)
    found: BackendRuntime = backend.runtime(plan_of())
    before = found.state_dict()
    found.load_state_dict(STATES.get(name, [{}])[number])
    yield found, device
    found.load_state_dict(before)


def differing(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> list[int]:
    """Numbers of the tensors whose difference has too large a norm; ``expected`` are in float64.

    A hundredth of the largest norm, or of 1, counts too: some gradients are exactly 0, such as a lone token's.
    """
    least = max(1.0, *(float(tensor.norm()) for tensor in expected)) / 100
    return [
        number
        for number, (mine, theirs) in enumerate(zip(found, expected, strict=True))
        if mine.shape != theirs.shape or not (mine.double() - theirs).norm() <= tolerance * (theirs.norm() + least)
    ]


# ---- attention ----


@st.composite
def calls(draw: st.DrawFn, device: str) -> AttentionCall:
    """Calls of attention as models make them, and some that few kernels support."""
    lengths = draw(st.lists(st.integers(1, 150), min_size=1, max_size=5))
    causal = draw(st.sampled_from([True, True, True, False]))
    starts, prefixes = [0, *accumulate(lengths)], []
    for number in range(len(lengths)):
        ends = sorted(draw(st.sets(st.integers(0, starts[number]), max_size=4))) if causal else []
        prefixes.append(tuple(zip(ends[::2], ends[1::2], strict=False)))
    key_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    size = draw(st.sampled_from([8, 16, 20, 64]))
    value_size = draw(st.sampled_from([size, size, size, 12]))
    dtype, contiguous = draw(DTYPES), draw(st.booleans())
    make = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def tensor(heads: int, width: int) -> torch.Tensor:
        made = torch.randn(1, starts[-1], heads, width, generator=make).to(device, dtype).transpose(1, 2)
        return made.contiguous() if contiguous else made

    sinks = torch.randn(key_heads * groups, generator=make).to(device, dtype) if draw(RARELY) else None
    window, softcap = draw(st.integers(1, 200)) if draw(RARELY) else None, 5.0 if draw(RARELY) else None
    rule = Rule(causal, 0.0, draw(st.sampled_from([None, 0.3])), window, softcap, sinks)
    layout = RowLayout(
        torch.tensor(starts, dtype=torch.int32, device=device),
        tuple(prefixes) if any(prefixes) else None,
        draw(st.sampled_from([None, max(lengths)])),
    )
    tensors = tensor(key_heads * groups, size), tensor(key_heads, size), tensor(key_heads, value_size)
    return AttentionCall(*tensors, rule, layout)


RARELY = st.sampled_from([False, False, False, False, True])


def attended(kernel: Any, call: AttentionCall, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and gradients of query, key, value and sinks, of the call in another dtype."""
    sinks = call.rule.sinks
    leaves = [
        tensor.detach().to(dtype).requires_grad_()
        for tensor in (call.query, call.key, call.value, *(() if sinks is None else (sinks,)))
    ]
    rule = Rule(
        call.rule.causal,
        0.0,
        call.rule.scale,
        call.rule.window,
        call.rule.softcap,
        None if sinks is None else leaves[3],
    )
    out = kernel.forward(AttentionCall(leaves[0], leaves[1], leaves[2], rule, call.layout))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, weights)]


@given(data=st.data())
def test_attention(runtime: tuple[BackendRuntime, str], data: st.DataObject) -> None:
    backend, device = runtime
    call = data.draw(calls(device))
    casts = call.query.dtype == torch.float32 and data.draw(RARELY)
    taken = [kernel for kernel in backend.attention if kernel.supports(call)]
    event(f"{[kernel.name for kernel in taken]}")
    if not taken:
        return
    expected, dtype = attended(PLAIN, call, torch.float64), call.query.dtype
    for kernel in taken:
        with torch.autocast(device, torch.bfloat16) if casts else nullcontext():
            found = attended(kernel, call, dtype)
        assert found[0].dtype == (torch.bfloat16 if casts else dtype)
        assert (kernel.name, differing(found, expected, CLOSE[found[0].dtype])) == (kernel.name, [])


def test_each_kernel_supports_something(runtime: tuple[BackendRuntime, str]) -> None:
    """What every decoder asks for, in bfloat16. The property above would pass where nothing is supported."""
    backend, device = runtime
    given_ = (torch.zeros(1, heads, 300, 64, dtype=torch.bfloat16, device=device) for heads in (9, 3, 3))
    layout = RowLayout(torch.tensor([0, 100, 300], dtype=torch.int32, device=device), ((), ((0, 40),)))
    call = AttentionCall(*given_, Rule(True, 0.0, None, None, None, None), layout)
    hidden, weight = (torch.zeros(count, 8, dtype=torch.bfloat16, device=device) for count in (9, 50))
    assert all(kernel.supports(call) for kernel in backend.attention)
    assert all(kernel.supports(hidden, LMHead(weight)) for kernel in backend.linear_cross_entropy)


# ---- linear cross-entropy ----


@st.composite
def losses(draw: st.DrawFn, device: str) -> dict[str, Any]:
    """Arguments of the three methods."""
    count, vocabulary, size = draw(st.integers(0, 40)), draw(st.integers(1, 60)), draw(st.integers(1, 12))
    dtype = draw(DTYPES)
    half = dtype.itemsize < 4
    own = draw(st.sampled_from([dtype, torch.float32] if half else [dtype]))  # a trained head may be in float32
    make = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=make).to(device, dtype)

    hidden, weight = tensor(count, size, dtype=dtype), tensor(vocabulary, size, dtype=own)
    if count and draw(st.booleans()):
        hidden = hidden.t().contiguous().t()
    return {
        "hidden": hidden,
        "weight": weight,
        "bias": tensor(vocabulary, dtype=own) if draw(st.booleans()) else None,
        "labels": torch.randint(0, vocabulary, (count,), generator=make).to(device),
        "weights": torch.rand(count, generator=make).to(device),
        "trained": draw(st.sampled_from(["hidden", "head", "both", "nothing"])),
        "options": (draw(st.sampled_from([1.0, 0.25])), draw(st.sampled_from([None, 5.0]))),
        "smoothing": draw(st.sampled_from([0.0, 0.1])),
    }


def computed(kernel: Any, case: dict[str, Any], to: torch.dtype | None = None) -> tuple[list[torch.Tensor], Any]:
    """Sum, log-probabilities, losses, and the gradients of the first two; hits."""
    hidden, weight, bias = (
        None if case[name] is None else case[name].detach().to(to or case[name].dtype).clone()
        for name in ("hidden", "weight", "bias")
    )
    leaves = [hidden] * (case["trained"] in ("hidden", "both"))
    leaves += [one for one in (weight, bias) if one is not None] * (case["trained"] in ("head", "both"))
    for leaf in leaves:
        leaf.requires_grad_()
    head, labels, weights = LMHead(weight, bias, *case["options"]), case["labels"], case["weights"].to(to)
    total = kernel.weighted_nll(hidden, head, labels, weights, case["smoothing"])
    logps = kernel.token_logps(hidden, head, labels)
    nll, hits = kernel.nll_and_hits(hidden, head, labels, case["smoothing"])
    found = [total.detach(), logps.detach(), nll]
    if leaves:
        found += [*torch.autograd.grad(total, leaves, torch.full_like(total, 0.5))]
        found += [*torch.autograd.grad(logps, leaves, weights.to(logps))]
    return found, hits


@given(data=st.data())
def test_linear_cross_entropy(runtime: tuple[BackendRuntime, str], data: st.DataObject) -> None:
    backend, device = runtime
    case = data.draw(losses(device))
    hidden, head = case["hidden"], LMHead(case["weight"], case["bias"])
    taken = [kernel for kernel in backend.linear_cross_entropy if kernel.supports(hidden, head)]
    event(f"{[kernel.name for kernel in taken]}")
    expected, hits = computed(CHUNKED, case, torch.float64)
    dtype = hidden.dtype
    for kernel in taken:
        found, mine = computed(kernel, case)
        assert found[1].dtype == found[2].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        if dtype == torch.float64:
            assert torch.equal(mine, hits), kernel.name
        assert (kernel.name, differing(found, expected, CLOSE[dtype])) == (kernel.name, [])
