"""All hooks, in the order in which they are called. Types are imported for type checkers only.

A plugin is a module or object with some of these functions, decorated with `ftcore.hookimpl`. It is named in the
entry-point group ``ftcore``. A hook function declares only the arguments that it uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback

    from ftcore.api import components as c
    from ftcore.api.model_transform import ModelTransform
    from ftcore.api.plan import Plan, Result
    from ftcore.errors import Problem

PROJECT = "ftcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def ft_commands() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Commands for the ``ft`` command line: name -> ``module:click_command``, imported when called.

    Called first, when the command line starts.
    """


@hookspec
def ft_dataset_formats() -> Iterable[c.DatasetFormat]:  # type: ignore[empty-body]
    """Dataset formats. Called when plugins are loaded, as are the eight hooks that follow."""


@hookspec
def ft_chat_templates() -> Iterable[c.ChatTemplate]:  # type: ignore[empty-body]
    """Chat templates."""


@hookspec
def ft_model_families() -> Iterable[c.ModelFamily]:  # type: ignore[empty-body]
    """Model families, and the models that they include."""


@hookspec
def ft_methods() -> Iterable[c.Method]:  # type: ignore[empty-body]
    """Fine-tuning methods."""


@hookspec
def ft_stages() -> Iterable[c.Stage]:  # type: ignore[empty-body]
    """Training stages."""


@hookspec
def ft_optimizers() -> Iterable[c.Optimizer]:  # type: ignore[empty-body]
    """Optimizers."""


@hookspec
def ft_launchers() -> Iterable[c.Launcher]:  # type: ignore[empty-body]
    """Launchers."""


@hookspec
def ft_inference_engines() -> Iterable[c.InferenceEngine]:  # type: ignore[empty-body]
    """Inference engines."""


@hookspec
def ft_backends() -> Iterable[c.Backend]:  # type: ignore[empty-body]
    """Backends: what runs compute with on a device."""


@hookspec
def ft_foreign_options() -> Mapping[str, c.ForeignOption]:  # type: ignore[empty-body]
    """Options of other tools that ft does not have: name -> the option's name in ft, or what to do instead.

    Called while options are bound, so that such an option gets a better message than «unknown option».
    """


@hookspec
def ft_check_plan(plan: Plan) -> Iterable[Problem]:  # type: ignore[empty-body]
    """Checks over several options of a bound plan. Called before a model is loaded; all problems are shown together."""


@hookspec(firstresult=True)
def ft_load_tokenizer(plan: Plan) -> PreTrainedTokenizerBase | None:
    """The tokenizer, or None to leave it to the next plugin; the built-in comes last."""


@hookspec(firstresult=True)
def ft_load_processor(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """The processor of a multimodal model, or None to leave it to the next plugin; the built-in comes last.

    Called by stages that train on images, and by ``ft export``. If all plugins return None, the model reads text only.
    """


@hookspec(firstresult=True)
def ft_load_model(plan: Plan, kwargs: dict[str, Any]) -> PreTrainedModel | None:
    """The model, or None to leave it to the next plugin; the built-in comes last.

    ``kwargs`` are for ``from_pretrained``: dtype, attention, and arguments of the method.
    """


@hookspec
def ft_model_ready(plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Called after the method was applied and before the trainer is created; may change the model in place."""


@hookspec
def ft_callbacks(plan: Plan) -> Iterable[TrainerCallback]:  # type: ignore[empty-body]
    """Callbacks for the trainer. Called when the trainer is created."""


@hookspec
def ft_model_transforms(plan: Plan) -> Iterable[ModelTransform]:  # type: ignore[empty-body]
    """Changes of the loaded model that keep what it computes. Called after `ft_callbacks`, and by
    ``ft plan --verbose``."""


@hookspec
def ft_run_finished(plan: Plan, result: Result) -> None:
    """Called when a run has finished without error and its files are written."""
