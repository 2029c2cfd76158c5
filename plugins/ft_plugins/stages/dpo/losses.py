"""Losses of preference pairs: each takes `PairScores` of B pairs and returns ``[B]``.

Tests compare them with TRL 1.16 (trainer/dpo_trainer.py, experimental/cpo, experimental/orpo). ``chosen_gain`` and
``rejected_gain`` are log-ratios of model and reference. In formulas b is ``pref_beta`` and e ``dpo_label_smoothing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ft_plugins.stages.dpo.objective import PairScores


@dataclass(frozen=True, slots=True)
class Knobs:
    """Hyperparameters of the losses.

    Args:
        beta: ``pref_beta``.
        smoothing: ``dpo_label_smoothing``.
        gamma: ``simpo_gamma``.
        tau: ``discopop_tau``.
    """

    beta: float
    smoothing: float = 0.0
    gamma: float = 0.5
    tau: float = 0.05


Loss = Callable[[PairScores, Knobs], Tensor]


def _delta(scores: PairScores) -> Tensor:
    return scores.chosen_gain - scores.rejected_gain


def _smoothed(x: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(x) - smoothing * logsigmoid(-x)


def sigmoid(scores: PairScores, knobs: Knobs) -> Tensor:
    """DPO (2305.18290, eq. 7), with label smoothing as in cDPO (https://ericmitchell.ai/cdpo.pdf)."""
    return _smoothed(knobs.beta * _delta(scores), knobs.smoothing)


def robust(scores: PairScores, knobs: Knobs) -> Tensor:
    """Unbiased where a share e of the labels is flipped (2403.00409)."""
    x, e = knobs.beta * _delta(scores), knobs.smoothing
    return (-(1 - e) * logsigmoid(x) + e * logsigmoid(-x)) / (1 - 2 * e)


def hinge(scores: PairScores, knobs: Knobs) -> Tensor:
    """SLiC (2305.10425) on log-ratios."""
    return torch.relu(1 - knobs.beta * _delta(scores))


def _mean_delta(scores: PairScores) -> Tensor:
    """Per token, as the authors of IPO confirmed to TRL."""
    chosen = scores.chosen_gain / scores.chosen_length.clamp(min=1)
    return chosen - scores.rejected_gain / scores.rejected_length.clamp(min=1)


def ipo(scores: PairScores, knobs: Knobs) -> Tensor:
    """IPO (2310.12036, eq. 17), on log-ratios per token."""
    return (_mean_delta(scores) - 1 / (2 * knobs.beta)).square()


def sigmoid_norm(scores: PairScores, knobs: Knobs) -> Tensor:
    """DPO on log-ratios per token (2411.15124)."""
    return -logsigmoid(knobs.beta * _mean_delta(scores))


def kto_pair(scores: PairScores, knobs: Knobs) -> Tensor:
    """KTO on pairs (2402.01306): each answer's gain against the mean gain of the other answers, which is detached."""
    chosen, rejected = scores.chosen_gain, scores.rejected_gain
    over = [gain.mean().clamp(min=0).detach() for gain in (chosen, rejected)]
    good = 1 - torch.sigmoid(knobs.beta * (chosen - over[1]))
    return (good + 1 - torch.sigmoid(knobs.beta * (over[0] - rejected))) / 2


def exo_pair(scores: PairScores, knobs: Knobs) -> Tensor:
    """EXO (2402.00856, eq. 16) for two answers; smoothing must be above 0."""
    x, e = knobs.beta * _delta(scores), knobs.smoothing
    won = torch.sigmoid(x) * (logsigmoid(x) - math.log1p(-e))
    return won + torch.sigmoid(-x) * (logsigmoid(-x) - math.log(e))


def nca_pair(scores: PairScores, knobs: Knobs) -> Tensor:
    """NCA (2402.05369)."""
    chosen, rejected = knobs.beta * scores.chosen_gain, knobs.beta * scores.rejected_gain
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(scores: PairScores, knobs: Knobs) -> Tensor:
    """BCO (2404.04656) on pairs, without the running mean that it subtracts."""
    return -logsigmoid(knobs.beta * scores.chosen_gain) - logsigmoid(-knobs.beta * scores.rejected_gain)


def sppo_hard(scores: PairScores, knobs: Knobs) -> Tensor:
    """SPPO (2405.00675, eq. 4.7) with a win probability of 1."""
    half = 0.5 / knobs.beta
    return (scores.chosen_gain - half).square() + (scores.rejected_gain + half).square()


def aot(scores: PairScores, knobs: Knobs) -> Tensor:
    """AOT (2406.05882) on pairs: the margins' quantiles within the micro-batch against the reference's."""
    own = (scores.chosen - scores.rejected).sort().values
    return _smoothed(knobs.beta * (own - (scores.ref_chosen - scores.ref_rejected).sort().values), knobs.smoothing)


def aot_unpaired(scores: PairScores, knobs: Knobs) -> Tensor:
    """AOT (2406.05882): quantiles of chosen answers' gains against those of rejected ones, within the micro-batch."""
    delta = scores.chosen_gain.sort().values - scores.rejected_gain.sort().values
    return _smoothed(knobs.beta * delta, knobs.smoothing)


def apo_zero(scores: PairScores, knobs: Knobs) -> Tensor:
    """APO-zero (2408.06266, eq. 7), for chosen answers better than the model's own."""
    return 1 - torch.sigmoid(knobs.beta * scores.chosen_gain) + torch.sigmoid(knobs.beta * scores.rejected_gain)


def apo_down(scores: PairScores, knobs: Knobs) -> Tensor:
    """APO-down (2408.06266, eq. 8), for chosen answers worse than the model's own."""
    return torch.sigmoid(knobs.beta * scores.chosen_gain) + 1 - torch.sigmoid(knobs.beta * _delta(scores))


def discopop(scores: PairScores, knobs: Knobs) -> Tensor:
    """DiscoPOP (2406.08414, eq. 5): logistic and exponential loss, mixed by the margin over tau."""
    x = knobs.beta * _delta(scores)
    share = torch.sigmoid(x / knobs.tau)
    return -logsigmoid(x) * (1 - share) + torch.exp(-x) * share


def likelihood(scores: PairScores, knobs: Knobs) -> Tensor:
    """The chosen answer's negative log-likelihood, of all its tokens."""
    return -scores.chosen_full


def _per_token(scores: PairScores) -> tuple[Tensor, Tensor]:
    chosen = scores.chosen / scores.chosen_length.clamp(min=1)
    return chosen, scores.rejected / scores.rejected_length.clamp(min=1)


def orpo(scores: PairScores, knobs: Knobs) -> Tensor:
    """ORPO (2403.07691, eq. 6 and 7): likelihood per token of the chosen answer, and b times the log odds ratio's."""
    chosen, rejected = _per_token(scores)
    odds = (chosen - _log_rest(chosen)) - (rejected - _log_rest(rejected))
    return -chosen - knobs.beta * logsigmoid(odds)


def _log_rest(logp: Tensor) -> Tensor:
    """``log(1 - p)`` from ``log(p)``. expm1 is accurate for p near 1, and the clamp keeps the result finite at 1."""
    return torch.log(-torch.expm1(logp.clamp(max=-1e-12)))


def simpo(scores: PairScores, knobs: Knobs) -> Tensor:
    """SimPO (2405.14734, eq. 6)."""
    chosen, rejected = _per_token(scores)
    return _smoothed(knobs.beta * (chosen - rejected) - knobs.gamma, knobs.smoothing)


LOSSES: Mapping[str, Loss] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "kto_pair": kto_pair,
    "orpo": orpo,
    "simpo": simpo,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sft": likelihood,
    "sigmoid_norm": sigmoid_norm,
}


def rewards(name: str, scores: PairScores, beta: float) -> tuple[Tensor, Tensor]:
    """Rewards of both answers, two ``[B]``: scaled gains, or log-probabilities where there is no reference."""
    if name in ("orpo", "simpo"):
        chosen, rejected = _per_token(scores)
        return beta * chosen, beta * rejected
    return beta * scores.chosen_gain, beta * scores.rejected_gain
