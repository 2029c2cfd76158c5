"""What ends an answer, and how answers are sampled, in the exported model's generation_config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.data.chat_template.renderer import Renderer


def set_generation(plan: Plan, model: Any, tokenizer: Any, renderer: Renderer | None) -> None:
    """Ends of turns as end-of-sequence ids, and the sampling that the user wrote; all else is the base model's."""
    config = model.generation_config
    set_ends(config, tokenizer, renderer)
    written = written_generation(plan)
    for name, value in written.items():
        setattr(config, name, value)
    if config.do_sample is not True and ({"temperature", "top_p", "top_k"} & written.keys() or _samples(config)):
        config.do_sample = written.get("do_sample", True)
    if not config.do_sample:
        config.temperature = config.top_p = config.top_k = None


def set_ends(config: Any, tokenizer: Any, renderer: Renderer | None) -> None:
    """Ends of turns as end-of-sequence ids, and the tokenizer's other ids, in a generation configuration."""
    stops = list(renderer.stop_ids) if renderer else [tokenizer.eos_token_id]
    config.eos_token_id = stops if len(stops) > 1 else next(iter(stops), None)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id


def _samples(config: Any) -> bool:
    """Whether the base model's own configuration sets how to sample; transformers saves it only as sampling."""
    return any(getattr(config, name, None) not in (None, 1.0, 50) for name in ("temperature", "top_p", "top_k"))


def written_generation(plan: Plan) -> dict[str, Any]:
    """Sampling options that the user wrote, and not their defaults."""
    names = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")
    bound = {name: plan.options[name] for name in names if name in plan.options}
    values = {name: option.value for name, option in bound.items() if option.origin not in ("default", "family")}
    if values.get("temperature") == 0:
        values |= {"do_sample": False}
        del values["temperature"]
    return values
