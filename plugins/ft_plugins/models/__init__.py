"""The built-in model families and loaders."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from ft_plugins.models.families import FAMILIES
from ftcore import hookimpl
from ftcore.api.components import ModelFamily

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from ftcore.api.plan import Plan
    from ftcore.errors import Problem


@hookimpl
def ft_model_families() -> Iterable[ModelFamily]:
    """The built-in families."""
    return FAMILIES


@hookimpl(trylast=True)
def ft_load_tokenizer(plan: Plan) -> PreTrainedTokenizerBase:
    """Loads it if no other plugin has."""
    from ft_plugins.models.loading import load_tokenizer

    return load_tokenizer(plan)


@hookimpl(wrapper=True, specname="ft_load_tokenizer")
def replace_special_tokens(
    plan: Plan,
) -> Generator[None, PreTrainedTokenizerBase | None, PreTrainedTokenizerBase | None]:
    """Adds new tokens of adapters and options, and sets ``bos_token``, ``eos_token`` and ``pad_token``."""
    from ft_plugins.models.new_tokens import add_tokens
    from ft_plugins.models.special_tokens import replace_tokens

    tokenizer = yield
    if tokenizer is not None:
        add_tokens(plan, tokenizer)
        replace_tokens(plan, tokenizer)
    return tokenizer


@hookimpl(trylast=True)
def ft_load_processor(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """Loads the processor of a vision model if no other plugin has."""
    from ft_plugins.models.processors import load_processor

    return load_processor(plan, tokenizer)


@hookimpl
def ft_check_plan(plan: Plan) -> Iterable[Problem]:
    """Reports quantised models that cannot be loaded here."""
    from ft_plugins.models.quantizers import problems

    return problems(plan)


@hookimpl(trylast=True)
def ft_load_model(plan: Plan, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Loads it if no other plugin has."""
    from ft_plugins.models.loading import load_model

    return load_model(plan, kwargs)


@hookimpl(wrapper=True, specname="ft_load_model")
def make_room(plan: Plan) -> Generator[None, PreTrainedModel | None, PreTrainedModel | None]:
    """Adds embedding rows for new tokens to a loaded model."""
    model = yield
    if model is not None and (plan.model.grows_vocabulary or plan.model.adapter_name_or_path):
        from ft_plugins.models.new_tokens import make_rows, rows_needed

        tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
        if needed := rows_needed(plan, model, tokenizer):
            make_rows(model, tokenizer, needed)
    return model
