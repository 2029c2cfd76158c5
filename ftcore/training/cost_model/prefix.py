"""The prompt that both answers of a pair have is computed once: where that is exact, and where it pays.

The batch then has ``[prompt, chosen]`` as one sequence and ``[last of the prompt, rejected]`` as another one, which
goes on from the other tokens of that prompt (``after``, see `ftcore.training.batching.collators`): its positions
restart at the branch, and its queries see the prompt's keys. The prompt's last token is there twice, because it
predicts both answers' first tokens, and a place in a row has one label.

What is saved is the linear layers' work on the prompt and its attention to itself. What is added is that each layer's
attention of the rejected answer has its keys in two places, which are copied together and whose gradients are handed
back (`ftcore.training.attention.blocked`), or goes under a mask. Measured on the CPU (one thread of an AMD EPYC with
AVX-512, torch 2.13, forward and backward of one layer, smollm2's and two other shapes, prompts of 2 to 700 tokens,
answers of 4 to 700), in units of the time that the linear layers take for a multiplication and addition forward and
back. That was with two parts merged by their logsumexps; in blocks the same beginnings pay (Zen 3, attention's ms
shared less alone, and linear layers' ms saved: 7 before 701 10.7 and 1.3, 7 before 17 0.1 and 1.3, 30 before 400 2.3
and 5.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ftcore.errors import Problem, UsageError
from ftcore.training.attention.blocked import available

ShareOption = bool | Literal["auto"]
"""The option ``share_prompt``."""

Shares = Callable[[int, int], bool]
"""Whether a sequence goes on from another one, by the tokens that are shared and by those that are its own."""

CALLS = 8.5e6
"""Further calls for each pair and layer: 0.17 ms, where linear layers made 1e11 operations a second."""
MERGE = 500
"""What keys in two places cost, for each number of the rejected answer's queries: 10 ns."""
ATTENTION = 6
"""Attention's time per operation: its backward pass does more, and its kernel is slower (29 GFLOP a second)."""


@dataclass(frozen=True, slots=True)
class PrefixCost:
    """Decides by what is saved and what is added, from lengths and the model's shape alone: the same on each resume.

    Args:
        weights: that a token is multiplied with in linear layers, over all layers.
        width: of all query heads.
        layers: how many.
        masked: whether a rectangle of attention is computed under a mask and not as two exact parts.
    """

    weights: int
    width: int
    layers: int
    masked: bool

    @classmethod
    def of(cls, model: Any) -> PrefixCost:
        """Of a transformers model."""
        config, decoder = model.config.get_text_config(), model.get_decoder()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        exact = available(model.device) and not getattr(config, "attention_dropout", 0)
        return cls(_weights(decoder), config.num_attention_heads * size, config.num_hidden_layers, not exact)

    def __call__(self, shared: int, queries: int) -> bool:
        """Whether sharing so many tokens before so many takes less time."""
        # pairs of query and key that are no longer computed; a mask's upper triangle is
        area = (shared**2 - (queries**2 if self.masked else 0)) / 2
        saved = 2 * self.weights * shared + ATTENTION * 4 * self.width * self.layers * area
        added = self.layers * (CALLS + (0 if self.masked else MERGE * self.width * queries))
        return saved > added


@dataclass(frozen=True, slots=True)
class AlwaysShare:
    """Shares every beginning."""

    def __call__(self, shared: int, queries: int) -> bool:
        """Yes."""
        return True


def sharing_rule(scorer: Any, wish: ShareOption, noise: bool = False) -> Shares | None:
    """How sequences are decided about; None where nothing is shared.

    Args:
        scorer: of the model that computes them.
        wish: the option.
        noise: whether embeddings get noise that depends on the length of their sequence.

    Raises:
        UsageError: every beginning is to be shared and cannot be.
    """
    if wish is False:
        return None
    if not noise and scorer.shares:
        return AlwaysShare() if wish is True else PrefixCost.of(scorer.inner)
    if wish is True:
        why = "noise on the embeddings depends on each answer" if noise else "this model would not compute the same"
        raise UsageError(Problem(f"share_prompt is true, and {why}", hint="write share_prompt: auto"))
    return None


def _weights(module: Any) -> int:
    """Of all linear layers, as many as they stand for where they are quantised; adapters on them are left out."""
    if hasattr(module, "base_layer"):
        return _weights(module.base_layer)
    if isinstance(module, nn.Embedding):
        return 0
    if hasattr(module, "in_features"):
        return int(module.in_features * module.out_features)
    own = sum(tensor.numel() for tensor in module.parameters(recurse=False) if tensor.dim() == 2)
    return own + sum(_weights(child) for child in module.children())
