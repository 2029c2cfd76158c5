"""flash-attention's kernel: what it is given, by its documentation."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ft_plugins.backends.cuda.flash_attention import FlashAttention
from ftcore.training.attention.kernel import AttentionCall, Rule
from ftcore.training.attention.layout import RowLayout
from ftcore.training.attention.plain import PLAIN


def test_it_gets_the_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call, computed here by its documentation: causal, the last query at the last key."""

    def varlen(q: Any, k: Any, v: Any, starts_q: Any, starts_k: Any, most_q: int, most_k: int, **options: Any) -> Any:
        assert options["causal"]
        assert (most_q, most_k) == (9, 13)
        groups, parts = q.shape[1] // k.shape[1], []
        for (a, b), (c, d) in zip(pairwise(starts_q.tolist()), pairwise(starts_k.tolist()), strict=True):
            mask = Rule(True, 0.0, None, None, None, None).band(b - a, d - c, q.device)
            keys, values = (part[c:d].transpose(0, 1).repeat_interleave(groups, 0) for part in (k, v))
            parts.append(scaled_dot_product_attention(q[a:b].transpose(0, 1), keys, values, attn_mask=mask))
        return torch.cat(parts, 1).transpose(0, 1)

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=varlen))
    make = torch.Generator().manual_seed(0)
    given = (torch.randn(1, 22, heads, 8, generator=make).double().transpose(1, 2) for heads in (4, 2, 2))
    layout = RowLayout(torch.tensor([0, 9, 13, 19, 22]), [(), (), ((0, 7),), ((0, 2), (9, 12))])
    call = AttentionCall(*given, Rule(True, 0.0, None, None, None, None), layout)
    torch.testing.assert_close(FlashAttention().forward(call), PLAIN.forward(call), rtol=1e-12, atol=1e-12)


def test_it_is_not_used_on_a_cpu() -> None:
    given = (torch.zeros(1, heads, 9, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    call = AttentionCall(*given, Rule(True, 0.0, None, None, None, None), RowLayout(torch.tensor([0, 9])))
    assert not FlashAttention().supports(call)
