"""Attention in blocks of queries: at any length a dense mask's numbers, and hardly more work than is needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from ft_plugins.backends.cpu import attention as blocked
from ft_plugins.backends.cpu import attention_gemm as gemm
from ft_plugins.backends.cpu import matmul
from ft_plugins.backends.cpu.attention import BLOCK, blocked_attention
from ft_plugins.backends.cpu.matmul import MatmulChoice
from ftcore.training.attention.kernel import AttentionCall, Rule
from ftcore.training.attention.layout import RowLayout, Span

EDGES = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK * 5 // 4 - 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 7)


def tensors(count: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [
        torch.randn(1, count, heads, 8, generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()
        for heads in (4, 2, 2)
    ]


def row(lengths: list[int], branch: int | None) -> list[Span]:
    """Sequences end to end; with ``branch`` the last one goes on from so many tokens of the first."""
    starts = [0, *accumulate(lengths)]
    found = [Span(slice(start, end)) for start, end in pairwise(starts)]
    if branch:
        found[-1] = Span(found[-1].own, (slice(0, branch),))
    return found


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: list[Span]) -> torch.Tensor:
    count = query.shape[2]
    mask = torch.zeros(count, count, dtype=torch.bool)
    for span in spans:
        length = span.own.stop - span.own.start
        mask[span.own, span.own] = torch.ones(length, length).tril().bool()
        for before in span.before:
            mask[span.own, before] = True
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def same_numbers(lengths: list[int], branch: int | None) -> None:
    spans, given_ = row(lengths, branch), tensors(sum(lengths))
    expected, found = dense(*given_, spans), blocked_attention(*given_, None, spans)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad(out, given_, weights) for out in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("branch", [None, 1, 40])
@pytest.mark.parametrize("length", EDGES)
def test_at_the_edges_of_blocks(length: int, branch: int | None) -> None:
    same_numbers([70, length], branch)


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Any sequence's attention goes by products; of each block done the numbers of queries and keys."""
    done: list[tuple[int, int]] = []
    own = gemm.forward

    def noted(query: Any, key: Any, *more: Any) -> torch.Tensor:
        done.append((query.shape[2], key.shape[2]))
        return own(query, key, *more)

    monkeypatch.setattr(gemm, "LEAST", 0)
    monkeypatch.setattr(matmul, "SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(gemm, "forward", noted)
    with matmul.choice_scope(MatmulChoice(forward=True, backward=True, attention=True)):
        yield done


@pytest.mark.parametrize("branch", [None, 1, 40])
@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 159, 160, 400])
def test_by_products(by_products: list[tuple[int, int]], length: int, branch: int | None) -> None:
    same_numbers([70, length], branch)
    assert sum(queries for queries, _ in by_products) == 70 + length
    assert by_products[-1][1] == length + (branch or 0)


@given(lengths=st.lists(st.integers(1, 300), min_size=2, max_size=3), share=st.floats(0, 1))
def test_any_lengths_by_products(by_products: list[Any], lengths: list[int], share: float) -> None:
    same_numbers(lengths, int(share * lengths[0]))


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_by_onednns_products(by_products: list[Any], heads: tuple[int, int], scale: float | None) -> None:
    """In float32, as they are used: the numbers of torch's own kernel to rounding, whichever heads share keys."""
    make = torch.Generator().manual_seed(0)
    given_ = [
        torch.randn(1, 330, count, 16, generator=make).transpose(1, 2).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]
    spans, weights = row([130, 200], 60), torch.randn(1, 330, heads[0], 16, generator=make)

    def results() -> list[torch.Tensor]:
        out = blocked_attention(*given_, scale, spans)
        return [out, *torch.autograd.grad(out, given_, weights)]

    found = results()
    assert by_products
    with matmul.choice_scope(MatmulChoice()):
        before = len(by_products)
        expected = results()
    assert len(by_products) == before
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taken", [False, True])
def test_in_bfloat16(taken: bool, by_products: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in float32 where the processor has no AMX: nearer to float64 than torch's kernel in bfloat16 is.

    Under autocast too, forward and backward: both have to go the same way.
    """
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors(330, torch.float32)]
    spans, weights = row([130, 200], 60), torch.randn(1, 330, 4, 8, generator=torch.Generator().manual_seed(1))

    def results(given_: list[torch.Tensor], casting: bool = False) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=casting):
            out = blocked_attention(*given_, None, spans)
            return [out, *torch.autograd.grad(out, given_, weights.to(out.dtype))]

    exact = [one.detach() for one in results([tensor.detach().double().requires_grad_() for tensor in halves])]
    by_products.clear()
    with matmul.choice_scope(matmul.get_choice() if taken else MatmulChoice()):
        monkeypatch.setattr(blocked, "_amx", lambda: False)
        found, cast = results(halves), results(halves, casting=True)
        assert bool(by_products) == taken
        monkeypatch.setattr(blocked, "_amx", lambda: True)
        theirs = results(halves)
    assert {one.dtype for one in found} == {torch.bfloat16}
    assert all(map(torch.equal, found, cast))
    for mine, other, one in zip(found, theirs, exact, strict=True):
        assert (mine.double() - one).norm() <= (other.double() - one).norm() + 1e-4 * one.norm()
        assert (mine.double() - one).norm() <= 3e-3 * one.norm()


def test_which_sequences_go_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    def serves(tokens: int, dtype: torch.dtype = torch.float32, group: int = 3) -> bool:
        return gemm.serves(torch.empty(1, 3 * group, 9, 64, dtype=dtype), torch.empty(1, 3, tokens, 64, dtype=dtype))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with matmul.choice_scope(MatmulChoice(forward=True, backward=True)):
        assert not serves(4096)
    with matmul.choice_scope(MatmulChoice(forward=True, backward=True, attention=True)):
        assert [serves(255), serves(256), serves(700, group=1), serves(768, group=1)] == [False, True, False, True]
        assert not serves(4096, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            assert not serves(4096)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        assert not serves(4096)


@given(
    lengths=st.lists(st.integers(1, 4 * BLOCK), min_size=2, max_size=4),
    share=st.floats(0, 1),
)
def test_any_lengths(lengths: list[int], share: float) -> None:
    same_numbers(lengths, int(share * lengths[0]))


def test_more_threads_than_heads_take_larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    keys = torch.zeros(1, 2, 400, 8)
    _, size = blocked._way(torch.zeros(1, 4, 400, 8), keys)
    sizes = [some.stop - some.start for some, _ in blocked._blocks(slice(0, 400), 400, size)]
    assert sizes == [208, 192]
    same_numbers([400, 300], 50)


@pytest.mark.parametrize("size", [BLOCK, 128])
@pytest.mark.parametrize(("length", "before"), [(40, 0), (64, 0), (500, 0), (1024, 0), (1000, 300), (33, 500)])
def test_work(length: int, before: int, size: int) -> None:
    """Pairs of query and key: those that are needed, and half a block for each query at most."""
    blocks = list(blocked._blocks(slice(before, before + length), before + length, size))
    assert [place for some, _ in blocks for place in range(some.start, some.stop)] == [*range(before, before + length)]
    pairs = sum((some.stop - some.start) * seen for some, seen in blocks)
    needed = length * before + length * (length + 1) // 2
    # the first block may be nearly two of the others
    assert needed <= pairs <= needed + length * size // 2 + size * size


def test_it_needs_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another torch may not have it: attention is plain then."""
    call = AttentionCall(*tensors(9), Rule(True, 0.0, None, None, None, None), RowLayout(torch.tensor([0, 9])))
    assert blocked.BlockedAttention().supports(call)
    monkeypatch.setattr(blocked, "_BACKWARD", None)
    assert not blocked.BlockedAttention().supports(call)


def test_masks_are_made_once_and_grow() -> None:
    blocked._masks.clear()
    sizes: list[Any] = []
    for keys in (100, 90, 3000, 100):
        mask = blocked._mask(64, keys, 64, torch.float32)
        expected = torch.full((64, keys), float("-inf")).triu(keys - 64 + 1)
        assert torch.equal(mask[0, 0], expected)
        sizes.append(blocked._masks[64, torch.float32].shape[-1])
    assert sizes == [256, 256, 4096, 4096]


def test_bfloat16() -> None:
    """Gradients of keys are added up in float32 over the blocks."""
    exact = tensors(300)
    half = [tensor.detach().to(torch.bfloat16).requires_grad_() for tensor in exact]
    spans = row([300], None)
    found, expected = blocked_attention(*half, None, spans), dense(*exact, spans)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=3e-2, atol=3e-2)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad(found, half, weights.to(torch.bfloat16))
    theirs = torch.autograd.grad(expected, exact, weights.double())
    for one, other in zip(mine, theirs, strict=True):
        assert (one.double() - other).norm() < 2e-2 * other.norm()
