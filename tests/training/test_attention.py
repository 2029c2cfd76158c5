"""Attention over packed rows: plain torch's against a dense mask, and which kernel computes a call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ftcore.training.attention.kernel import AttentionCall, Rule, UnsupportedAttentionError
from ftcore.training.attention.layout import RowLayout, Span
from ftcore.training.attention.varlen import recording, varlen_attention

ROW = ([9, 4, 6, 3], [(), (), ((0, 7),), ((0, 2), (9, 12))])


def tensors(dtype: torch.dtype = torch.float64, heads: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, 2, 2)
    return [
        torch.randn(1, 22, size, 8, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_() for size in sizes
    ]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int = 99) -> torch.Tensor:
    """Attention under a dense mask, by torch's own function."""
    mask, start = torch.zeros(22, 22, dtype=torch.bool), 0
    for length, ranges in zip(*ROW, strict=True):
        places = [*(place for some in ranges for place in range(*some)), *range(start, start + length)]
        band = Rule(True, 0.0, None, window, None, None).band(length, len(places), mask.device)
        mask[start : start + length, places] = band
        start += length
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    starts = torch.tensor([0, *ROW[0]]).cumsum(0).int()
    module = SimpleNamespace(is_causal=True)
    given = {"cu_seq_lens_q": starts, "prefixes": ROW[1]} | options
    found, _ = varlen_attention(module, query, key, value, None, **given)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("window", [None, 5])
def test_attention_and_its_gradients(window: int | None) -> None:
    """Against a dense mask, in float64."""
    given = tensors()
    expected = dense(*given) if window is None else dense(*given, window)
    found = ours(*given, sliding_window=window)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs_of = zip(*(torch.autograd.grad(out, given, weights) for out in (found, expected)), strict=True)
    for mine, theirs in pairs_of:
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(ours, tensors(), fast_mode=True)


def test_attention_in_bfloat16_under_autocast() -> None:
    """Queries in float32, as rotary embeddings leave them in some models."""
    given = [tensor.detach() for tensor in tensors(torch.float32)]
    expected = dense(*given)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(*given)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


def test_attention_that_looks_ahead_is_refused() -> None:
    with pytest.raises(UnsupportedAttentionError, match="is not causal"):
        ours(*tensors(), is_causal=False)


# ---- kernels ----


class Counts:
    """A kernel that returns its number."""

    splits_rows = True

    def __init__(self, number: int, longest: int) -> None:
        self.name, self.number, self.most = f"kernel {number}", number, longest

    def supports(self, call: AttentionCall) -> bool:
        return call.layout.longest <= self.most

    def forward(self, call: AttentionCall) -> torch.Tensor:
        return torch.full((1,), float(self.number))


def test_the_first_kernel_that_supports_a_call_computes_it() -> None:
    given = tensors()
    assert ours(*given, attention_kernels=(Counts(1, 8), Counts(2, 9), Counts(3, 99))).item() == 2
    assert ours(*given, attention_kernels=(Counts(1, 8),), max_length_q=7).item() == 1
    assert torch.equal(ours(*given, attention_kernels=(Counts(1, 8),)), ours(*given))


def test_a_part_of_a_row_needs_a_kernel_for_it() -> None:
    part: Any = object()
    assert ours(*tensors(), kv_part=part, attention_kernels=(Counts(1, 9),)).item() == 1
    with pytest.raises(UnsupportedAttentionError, match="SimpleNamespace cannot attend to keys of another part of the"):
        ours(*tensors(), kv_part=part, attention_kernels=(Counts(1, 8),))


def test_kernels_are_recorded_in_the_order_of_their_calls() -> None:
    calls: list[Any] = []
    kernels = recording((Counts(1, 8), Counts(2, 9)), calls)
    for longest in (9, 8, 99):
        ours(*tensors(), attention_kernels=kernels, max_length_q=longest)
    assert [kernel.name for kernel in calls] == ["kernel 2", "kernel 1", "plain"]
    assert [kernel.splits_rows for kernel in calls] == [True, True, False]


@pytest.mark.parametrize(
    ("rule", "plain"),
    [
        (Rule(True, 0.0, 0.3, None, None, None), True),
        (Rule(True, 0.0, None, 13, None, None), True),  # 13 keys before and of the third sequence
        (Rule(True, 0.0, None, 12, None, None), False),
        (Rule(False, 0.0, None, None, None, None), False),
        (Rule(True, 0.1, None, None, None, None), False),
        (Rule(True, 0.0, None, None, 5.0, None), False),
        (Rule(True, 0.0, None, None, None, torch.zeros(4)), False),
    ],
)
def test_what_is_plain_causal(rule: Rule, plain: bool) -> None:
    layout = RowLayout(torch.tensor([0, 9, 13, 19, 22]), ROW[1])
    assert AttentionCall(*tensors(), rule, layout).is_plain_causal is plain


def test_a_layout() -> None:
    layout = RowLayout(torch.tensor([0, 9, 13, 19, 22], dtype=torch.int32), ROW[1])
    assert (layout.lengths, layout.keys, layout.longest) == ([9, 4, 6, 3], [9, 4, 13, 8], 9)
    assert layout.spans()[3] == Span(slice(19, 22), (slice(0, 2), slice(9, 12)))
    assert RowLayout(torch.tensor([0, 9, 13])).spans() == [Span(slice(0, 9)), Span(slice(9, 13))]
