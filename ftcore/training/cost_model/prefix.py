"""The cost of shared prefixes: decides when computing a common prompt once saves time.

A pair's batch then holds ``[prompt, chosen]`` as one sequence and ``[last prompt token, rejected]`` as another, whose
prefix is the rest of the prompt (`ftcore.training.batching.shared_prefix`): its positions continue after the prefix,
and its queries see the prompt's keys. The last prompt token occurs twice, because it predicts the first token of both
answers, and a position has one label.

Sharing saves the linear layers' work on the prompt, and the prompt's attention to itself. It adds work to the attention
of the rejected answer: its keys lie in two places, are concatenated, and their gradients are distributed by the
backend's kernel, or a mask is used. The constants are measured on one thread of an AMD EPYC with AVX-512 (torch 2.13,
forward and backward of one layer, three shapes, smollm2's among them, prompts of 2 to 700 tokens, answers of 4 to 700).
Their unit is the time of one multiply-add of the linear layers, forward and backward. The measurement merged two parts
by their logsumexps. Blocked attention agrees on when sharing saves time. On a Zen 3, added ms of attention and saved ms
of linear layers: 7 tokens before 701, 10.7 and 1.3; 7 before 17, 0.1 and 1.3; 30 before 400, 2.3 and 5.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ftcore.errors import Problem, UsageError
from ftcore.training.backend import BackendRuntime

ShareOption = bool | Literal["auto"]
"""The option ``share_prompt``."""

Shares = Callable[[int, int], bool]
"""Decides whether a sequence shares a prefix, from the numbers of shared tokens and of its own."""

CALLS = 8.5e6
"""Additional calls per pair and layer: 0.17 ms, while linear layers compute 1e11 operations per second."""
MERGE = 500
"""Cost of keys in two places, per number of the rejected answer's queries: 10 ns."""
ATTENTION = 6
"""Attention's time per operation: its backward pass computes more, and its kernel is slower (29 GFLOP/s)."""


@dataclass(frozen=True, slots=True)
class PrefixCost:
    """Compares saved and added work. Lengths and the model's shape alone decide, so a resume decides alike.

    Args:
        weights: number of weights in the linear layers of all layers.
        width: total size of the query heads.
        layers: number of layers.
        masked: whether attention to a prefix uses a mask over the full rectangle.
    """

    weights: int
    width: int
    layers: int
    masked: bool

    @classmethod
    def of(cls, model: Any, backend: BackendRuntime) -> PrefixCost:
        """The cost model of a transformers model."""
        config, decoder = model.config.get_text_config(), model.get_decoder()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        masked = backend.masks_prefixes or bool(getattr(config, "attention_dropout", 0))
        return cls(_weights(decoder), config.num_attention_heads * size, config.num_hidden_layers, masked)

    def __call__(self, shared: int, queries: int) -> bool:
        """Whether sharing ``shared`` tokens before ``queries`` own ones takes less time."""
        # pairs of query and key that are not computed any more; with a mask, the upper triangle is computed in addition
        area = (shared**2 - (queries**2 if self.masked else 0)) / 2
        saved = 2 * self.weights * shared + ATTENTION * 4 * self.width * self.layers * area
        added = self.layers * (CALLS + (0 if self.masked else MERGE * self.width * queries))
        return saved > added


@dataclass(frozen=True, slots=True)
class AlwaysShare:
    """Shares every common prefix."""

    def __call__(self, shared: int, queries: int) -> bool:
        """True."""
        return True


def sharing_rule(scorer: Any, wish: ShareOption, noise: bool = False) -> Shares | None:
    """The rule for sharing prefixes; None to share nothing.

    Args:
        scorer: of the model.
        wish: ``share_prompt``.
        noise: whether NEFTune is on, whose noise depends on the length of the sequence.

    Raises:
        UsageError: ``share_prompt: true``, and the model or NEFTune does not allow it.
    """
    if wish is False:
        return None
    if not noise and scorer.shares:
        return AlwaysShare() if wish is True else PrefixCost.of(scorer.inner, scorer.backend)
    if wish is True:
        why = "neftune_noise_alpha is set" if noise else "the model does not reproduce its logits with shared prefixes"
        raise UsageError(Problem(f"share_prompt is true, and {why}", hint="write share_prompt: auto"))
    return None


def _weights(module: Any) -> int:
    """Number of weights of all linear layers, quantised ones included and adapters excluded."""
    if hasattr(module, "base_layer"):
        return _weights(module.base_layer)
    if isinstance(module, nn.Embedding):
        return 0
    if hasattr(module, "in_features"):
        return int(module.in_features * module.out_features)
    own = sum(tensor.numel() for tensor in module.parameters(recurse=False) if tensor.dim() == 2)
    return own + sum(_weights(child) for child in module.children())
