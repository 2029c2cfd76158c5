"""Serves several adapters on one shared base model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ft_plugins.engines.transformers.generator import TransformersGenerator
from ft_plugins.engines.transformers.loading import infer_dtype
from ftcore.api.components import Generator
from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import Problem, UsageError
from ftcore.models.adapters import adapter_folder

if TYPE_CHECKING:
    from ftcore.api.plan import Plan


def load_shared(plans: Mapping[str, Plan]) -> Mapping[str, Generator]:
    """Generators of plans with the same base model and at most one adapter each.

    Adapters are not merged but switched before each computation, so one thread must use all generators.

    Raises:
        UsageError: a plan cannot share the base model.
    """
    first = next(iter(plans.values()))
    _check(plans, first)
    renderers = {
        name: Renderer.from_plan(plan, plan.plugins.hook.ft_load_tokenizer(plan=plan)) for name, plan in plans.items()
    }
    _check_tokens(plans, renderers)
    kwargs: dict[str, Any] = first.method.component.load_kwargs(first) | {"dtype": getattr(torch, infer_dtype(first))}
    model = first.plugins.hook.ft_load_model(plan=first, kwargs=kwargs)
    adapters = {name: plan.model.adapter_name_or_path[-1] for name, plan in plans.items() if _adapter(plan)}
    # peft allows no dots in an adapter's name
    numbers = {name: f"adapter{number}" for number, name in enumerate(adapters)}
    for name, path in adapters.items():
        model = _added(model, plans[name], path, numbers[name])
    model = model.eval()
    return {
        name: TransformersGenerator(plan, model, renderers[name], _switch(model, numbers.get(name)))
        for name, plan in plans.items()
    }


def _adapter(plan: Plan) -> str | None:
    return next(iter(plan.model.adapter_name_or_path[-1:]), None)


def _check(plans: Mapping[str, Plan], first: Plan) -> None:
    problems = []
    for name, plan in plans.items():
        model, where = plan.model, plan.where("adapter_name_or_path")
        if (model.model_name_or_path, model.model_revision) != (
            first.model.model_name_or_path,
            first.model.model_revision,
        ):
            reason = f"{name} has the base model {model.model_name_or_path}, not {first.model.model_name_or_path}"
            problems.append(Problem(reason, where, "adapters that are served together must share a base model"))
        if len(model.adapter_name_or_path) > 1:
            reason = (
                f"{name} is stacked on other adapters, and these would have to be merged into the shared base model"
            )
            problems.append(Problem(reason, where, "merge it into one model with ft export, or serve it alone"))
        if infer_dtype(plan) != infer_dtype(first):
            problems.append(Problem(f"{name} and the first adapter have different infer_dtype", where))
    if problems:
        raise UsageError(problems)


def _check_tokens(plans: Mapping[str, Plan], renderers: Mapping[str, Renderer]) -> None:
    """Raises UsageError for adapters that add tokens to the base model."""
    problems = []
    for name, plan in plans.items():
        if plan.model.grows_vocabulary or len(getattr(renderers[name].tokenizer, "ft_new_tokens", ())) > 0:
            reason = f"{name} adds tokens that the shared base model does not have"
            problems.append(Problem(reason, plan.where("adapter_name_or_path"), "serve it alone"))
    if problems:
        raise UsageError(problems)


def _added(model: Any, plan: Plan, path: str, number: str) -> Any:
    from peft import PeftModel

    folder = str(adapter_folder(plan, path))
    try:
        with warnings.catch_warnings():
            # peft 0.21 uses a name that is deprecated in transformers 5.23
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, folder, adapter_name=number, is_trainable=False)
            model.load_adapter(folder, adapter_name=number, is_trainable=False)
    except (RuntimeError, ValueError) as error:
        reason = f"adapter {path} does not fit {plan.model.model_name_or_path}: {' '.join(str(error).split())[:200]}"
        raise UsageError(Problem(reason, hint="write the model that the adapter was trained on")) from error
    return model


def _switch(model: Any, number: str | None) -> Callable[[], AbstractContextManager[None]]:
    """A function that returns contexts in which this adapter, or none, is active."""
    if not hasattr(model, "peft_config"):
        return lambda: _nothing()

    @contextmanager
    def on() -> Iterator[None]:
        if number is None:
            with model.disable_adapter():
                yield
            return
        if model.active_adapter != number:
            model.set_adapter(number, inference_mode=True)
        yield

    return on


@contextmanager
def _nothing() -> Iterator[None]:
    yield
