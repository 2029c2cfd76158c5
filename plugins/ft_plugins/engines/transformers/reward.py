"""Scores conversations with a loaded reward model, tokenised as in the rm stage."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ftcore.api.components import Judge
from ftcore.api.plan import Plan
from ftcore.api.samples import Chat, Feedback, Place
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.preprocessing.prepare import PreparedFeedback, prepare
from ftcore.errors import Problem, RowError, UsageError
from ftcore.training.batching.collators import collate, on_device
from ftcore.training.forward.reward import RewardForward
from ftcore.training.model_transforms import capability_cache


class TransformersJudge(Judge):
    """Scores with a sequence-classification model of one label, at the last token.

    Args:
        plan: supplies ``cutoff_len`` and batch size (``per_device_eval_batch_size``).
        model: model in evaluation mode.
        renderer: tokenises conversations as in training.
    """

    def __init__(self, plan: Plan, model: PreTrainedModel, renderer: Renderer) -> None:
        config = model.config.get_text_config()
        if config.pad_token_id is None:  # as in stage rm: the score is that of the last token that is not padding
            config.pad_token_id = renderer.tokenizer.pad_token_id
        self.plan, self.renderer = plan, renderer
        self.scorer = RewardForward(model, plan.backend.component.runtime(plan))
        capability_cache.probe_capabilities(self.scorer)
        self.device = model.device
        self._lock = threading.Lock()

    def read(self, chats: Sequence[Chat], places: Sequence[str] = ()) -> list[Sequence[int]]:
        """Tokenises as stage rm does; see `Judge.read`. A conversation beyond ``cutoff_len`` is an error."""
        places = places or [f"conversation {number}" for number in range(1, len(chats) + 1)]
        rows: list[Sequence[int]] = []
        problems: list[Problem] = []
        for where, row in zip(places, self._rows(chats), strict=True):
            if isinstance(row, Problem):
                problems.append(Problem(row.message, where, row.hint))
            else:
                rows.append(row)
        if problems:
            raise UsageError(problems)
        return rows

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores in order; rows of similar length share a batch."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        scores = [0.0] * len(rows)
        size = self.plan.training.per_device_eval_batch_size
        for start in range(0, len(order), size):
            part = order[start : start + size]
            items = [
                {"input_ids": np.asarray(rows[index]), "weights": np.zeros(len(rows[index]), np.float32), "index": 0}
                for index in part
            ]
            with self._lock, torch.inference_mode():
                found = self.scorer.rewards(on_device(collate(items), self.device)).tolist()
            for index, score in zip(part, found, strict=True):
                scores[index] = score
        return scores

    def _rows(self, chats: Sequence[Chat]) -> list[Sequence[int] | Problem]:
        samples = [(Place("", number), Feedback(chat, good=True)) for number, chat in enumerate(chats)]
        asked = [sample for sample in samples if _ends_with_answer(sample[1].chat)]
        prepared = dict(prepare(asked, self.renderer, self.plan.data))
        limit, found = self.plan.data.cutoff_len, list[Sequence[int] | Problem]()
        for place, _ in samples:
            row = prepared.get(place)
            if row is None:
                found.append(Problem("the last turn is not the assistant's: there is nothing to score"))
            elif isinstance(row, RowError):
                found.append(Problem(row.reason, hint=row.cure))
            elif row.tokens > limit:
                hint = "raise cutoff_len, or shorten it"
                found.append(Problem(f"{row.tokens} tokens, cutoff_len is {limit}", hint=hint))
            else:
                assert isinstance(row, PreparedFeedback)
                found.append(row.chat.labelled.encoded.ids.tolist())
        return found


def _ends_with_answer(chat: Chat) -> bool:
    return bool(chat.messages) and chat.messages[-1].role == "assistant"
