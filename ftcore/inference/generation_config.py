"""Stop tokens and sampling options for the generation_config.json of an exported model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.data.chat_template.renderer import Renderer


def set_generation(plan: Plan, model: Any, tokenizer: Any, renderer: Renderer | None) -> None:
    """Sets stop ids and the sampling options that the user wrote; all other values are the base model's."""
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
    """Sets stop ids and the tokenizer's pad and begin-of-sequence ids in a generation configuration."""
    stops = list(renderer.stop_ids) if renderer else [tokenizer.eos_token_id]
    config.eos_token_id = stops if len(stops) > 1 else next(iter(stops), None)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id


def _samples(config: Any) -> bool:
    """Whether the base model's configuration has sampling options; transformers saves them only with do_sample."""
    return any(getattr(config, name, None) not in (None, 1.0, 50) for name in ("temperature", "top_p", "top_k"))


def written_generation(plan: Plan) -> dict[str, Any]:
    """The sampling options that the user wrote, without defaults."""
    names = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")
    bound = {name: plan.options[name] for name in names if name in plan.options}
    values = {name: option.value for name, option in bound.items() if option.origin not in ("default", "family")}
    if values.get("temperature") == 0:
        values |= {"do_sample": False}
        del values["temperature"]
    return values
