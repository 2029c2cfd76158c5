"""The kind of component that answers and scores, and what it loads; `ftcore.api.components` offers it on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftcore.api.component import Component
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.api.inference_types import Chunk, Prompt
    from ftcore.api.plan import Plan
    from ftcore.api.samples import Chat


@dataclass(frozen=True, kw_only=True)
class InferenceEngine(Component, ABC):
    """Answers, and scores where it can."""

    kind = "inference_engine"
    option = "infer_backend"

    @abstractmethod
    def load(self, plan: Plan) -> Generator:
        """Loads model and adapters once; what comes back answers until it is dropped."""

    def load_all(self, plans: Mapping[str, Plan]) -> Mapping[str, Generator]:
        """Loads several, which one thread will use; an engine that can lets them share a base model.

        Args:
            plans: name -> plan.
        """
        return {name: self.load(plan) for name, plan in plans.items()}

    def judge(self, plan: Plan) -> Judge:
        """Loads a reward model once; what comes back scores until it is dropped.

        Raises:
            UsageError: when the engine does not score, or the model does not.
        """
        reason = f"inference engine {self.name} does not score"
        raise UsageError(Problem(reason, hint="write infer_backend: and one that does"))

    def over(self, plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """Answers with a model that the run holds, as it is at each call; it may change its generation config.

        Raises:
            UsageError: the engine only answers with models that it loads itself.
        """
        reason = f"engine {self.name} only answers with models that it loads itself, not with that of a run"
        raise UsageError(Problem(reason))


class Generator(ABC):
    """A loaded model that answers."""

    tokenizer: PreTrainedTokenizerBase
    context: int | None = None
    """Tokens of prompt and answer together that the model has places for, where that is known."""

    @abstractmethod
    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        """Pieces of text as they are made, each with the index of its prompt; batched."""

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 (an engine need not know beforehand)
        """Refuses prompts that `stream` would refuse, before an hour of answers is made; here it knows of none.

        Raises:
            UsageError: with every prompt that cannot be answered, and its place.
        """


class Judge(ABC):
    """A loaded reward model."""

    @abstractmethod
    def read(self, chats: Sequence[Chat], places: Sequence[str] = ()) -> list[Sequence[int]]:
        """The tokens of each conversation, as the model read them in training.

        Args:
            chats: each ends with the answer that is scored.
            places: what they are called in errors, such as ``file:3``; without it ``conversation 3``.

        Raises:
            UsageError: with every conversation that cannot be scored.
        """

    @abstractmethod
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The score of each conversation that `read` has read, in order; the higher, the better.

        Scores compare within one model only. Batched; one call at a time, further callers wait.
        """
