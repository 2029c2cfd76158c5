"""Generation settings of one prompt, for transformers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftcore.api.option_groups import GenerationOptions
from ftcore.errors import UsageError
from ftcore.inference.generation_options import override_options

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from ftcore.api.plan import Plan


@dataclass(frozen=True, slots=True)
class Settings:
    """Generation settings of one prompt.

    Args:
        options: validated options.
        total: limit of prompt and answer together, in tokens; None if ``max_new_tokens`` applies.
    """

    options: GenerationOptions
    total: int | None

    @classmethod
    def of(cls, plan: Plan, overrides: Mapping[str, Any] | None) -> Settings:
        """The settings; raises UsageError with all unknown or invalid settings."""
        options = override_options(plan.generation, overrides)
        given = {name for name, value in (overrides or {}).items() if value is not None}
        return cls(options, _total(plan, options, given))

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return self.options.do_sample and self.options.temperature > 0

    def new_tokens(self, prompt_tokens: int, context: int | None) -> int:
        """The limit of the answer for a prompt length and the model's context length.

        Raises:
            UsageError: no tokens are left for an answer.
        """
        total, limit = self.total, "max_length"
        if context is not None and (total is None or context < total):
            total, limit = context, "the model's longest sequence"
        if total is None:
            return self.options.max_new_tokens
        if prompt_tokens >= total:
            raise UsageError(f"the prompt has {prompt_tokens} tokens, {limit} is {total}")
        room = total - prompt_tokens
        return room if self.total is not None else min(room, self.options.max_new_tokens)

    def config(self, new_tokens: int, stop_ids: Collection[int], pad: int) -> GenerationConfig:
        """The transformers configuration; all values are set, so that no model defaults apply."""
        from transformers import GenerationConfig

        options = self.options
        fields: dict[str, Any] = {
            "max_new_tokens": new_tokens,
            "do_sample": self.samples,
            "num_beams": options.num_beams,
            "repetition_penalty": options.repetition_penalty,
            "eos_token_id": sorted(stop_ids) or None,
            "pad_token_id": pad,
        }
        if self.samples:
            fields |= {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
        if options.num_beams > 1:
            fields["length_penalty"] = options.length_penalty
        return GenerationConfig(**fields)


def _total(plan: Plan, options: GenerationOptions, overridden: Collection[str]) -> int | None:
    """``max_length``, unless ``max_new_tokens`` is set, which has priority."""
    bound = plan.options.get("max_new_tokens")
    given = "max_new_tokens" in overridden or (bound is not None and bound.origin not in ("default", "family"))
    if "max_length" in overridden and "max_new_tokens" not in overridden:
        given = False
    return None if given else options.max_length
