"""What of a conversation is kept when it is longer than ``cutoff_len``."""

from __future__ import annotations

import numpy as np

from ftcore.data.tokenization.encoder import Labelled
from ftcore.data.tokenization.loss_reasons import Reason

NOT_TRAINED = "it has no tokens to train on"
PROMPT_TOO_LONG = "its prompt is longer than cutoff_len"


def kept_tokens(labelled: Labelled, cutoff_len: int) -> tuple[int, str]:
    """How many of the first tokens are kept, and why the row cannot be trained; empty when it can.

    Of a conversation that is too long the first ``cutoff_len`` tokens are kept, and of these nothing after the last
    trained content: no header of a turn is left without its text. An answer that is cut off keeps what fits; its end
    of turn is beyond the cut, so it is not learnt where the text does not reach it.
    """
    length = len(labelled.weights)
    # The first token is nobody's prediction: it is never trained, whatever its weight.
    trained = np.flatnonzero(labelled.weights[1:]) + 1
    if not len(trained):
        return 0, NOT_TRAINED
    if length <= cutoff_len:
        return length, ""
    content = trained[(trained < cutoff_len) & (labelled.reasons[trained] != Reason.TEMPLATE)]
    if not len(content):
        return 0, PROMPT_TOO_LONG
    return int(content[-1]) + 1, ""
