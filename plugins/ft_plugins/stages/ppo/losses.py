"""Losses of proximal policy optimisation (arXiv 1707.06347) with the per-token KL penalty of arXiv 2009.01325."""

from __future__ import annotations

import torch


def divergences(logps: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """Estimates of the KL divergence from the reference at each sampled token, ``[R]``.

    Args:
        logps, reference: log-probabilities of the tokens, ``[R]``.
        estimator: ``k1``, the log-ratio; or ``k3``, never negative (http://joschu.net/blog/kl-approx.html).
    """
    ratio = logps - reference
    return ratio if estimator == "k1" else torch.expm1(-ratio) + ratio


def token_rewards(penalties: torch.Tensor, score: float, coefficient: float) -> torch.Tensor:
    """Rewards ``[R]``: each token's penalty, plus the score at the last token (2009.01325, section 3.4)."""
    rewards = -coefficient * penalties
    rewards[-1] += score
    return rewards


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, discount: float, decay: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of one response (1707.06347, equations 11 and 12), each ``[R]``.

    Args:
        rewards: ``[R]``.
        values: of the states in which each token was chosen, ``[R]``; 0 after the last token.
        discount: gamma.
        decay: lambda.
    """
    gains, later, following = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
        later = reward + discount * following - value + discount * decay * later
        gains.append(later)
        following = value
    found = rewards.new_tensor(gains[::-1])
    return found, found + values


def whitened(values: torch.Tensor, *, centred: bool = True) -> torch.Tensor:
    """Values ``[N]`` scaled to variance 1, and shifted to mean 0 unless ``centred`` is false."""
    mean = values.mean()
    scaled = (values - mean) * torch.rsqrt(values.var(unbiased=False) + 1e-8)
    return scaled if centred else scaled + mean


def policy_losses(logps: torch.Tensor, old: torch.Tensor, gains: torch.Tensor, clip: float) -> torch.Tensor:
    """Clipped surrogate losses ``[T]`` (1707.06347, equation 7)."""
    ratio = torch.exp(logps - old)
    return torch.maximum(-gains * ratio, -gains * ratio.clamp(1 - clip, 1 + clip))


def value_losses(values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """Half squared errors ``[T]``: the larger one of clipped and unclipped values."""
    near = torch.minimum(torch.maximum(values, old - clip), old + clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())
