"""Truncates conversations to ``cutoff_len``."""

from __future__ import annotations

import numpy as np

from ftcore.data.tokenization.encoder import Labelled
from ftcore.data.tokenization.loss_reasons import Reason

NOT_TRAINED = "it has no tokens to train on"
PROMPT_TOO_LONG = "its prompt is longer than cutoff_len"


def kept_tokens(labelled: Labelled, cutoff_len: int) -> tuple[int, str]:
    """The number of leading tokens to keep, and why the row is not trained on; empty if it is.

    A conversation that is too long keeps its first ``cutoff_len`` tokens, up to the last trained content: a header
    without its text is removed. A truncated answer keeps the tokens that fit. Its end-of-turn token is cut off, so the
    model does not learn to stop there.
    """
    length = len(labelled.weights)
    # The first token has no prediction: it is never trained, whatever its weight.
    trained = np.flatnonzero(labelled.weights[1:]) + 1
    if not len(trained):
        return 0, NOT_TRAINED
    if length <= cutoff_len:
        return length, ""
    content = trained[(trained < cutoff_len) & (labelled.reasons[trained] != Reason.TEMPLATE)]
    if not len(content):
        return 0, PROMPT_TOO_LONG
    return int(content[-1]) + 1, ""
