"""The served models: a model and its adapters, each with a name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ftcore.data.chat_template.renderer import Renderer
from ftcore.errors import Problem, UsageError
from ftcore.inference.sessions import Session, open_session
from ftcore.serving.bounds import Bounds
from ftcore.serving.preparing import Preparer
from ftcore.serving.tool_call_formats import ToolCallFormat
from ftcore.serving.tool_calls import learn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftcore.api.components import Generator, Judge
    from ftcore.api.inference_types import Prompt
    from ftcore.api.plan import Plan
    from ftcore.inference.target import Target


@dataclass(frozen=True, kw_only=True)
class Served:
    """One entry of ``/v1/models``.

    Args:
        name: name in requests.
        plan: plan of the model.
        generator: the generator; None for a reward model.
        judge: the reward model; None for other models.
        renderer: renders prompts.
        notation: format of tool calls.
        bounds: size limits of conversations.
        preparer: tokenises prompts; shared by all served models.
        created: time of loading, in seconds since 1970.
    """

    name: str
    plan: Plan
    bounds: Bounds
    preparer: Preparer
    generator: Generator | None
    judge: Judge | None = None
    renderer: Renderer | None = None
    notation: ToolCallFormat | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def opener(self) -> Callable[[], Session]:
        """A function that opens a session with ``serve_batch`` slots."""
        assert self.generator is not None
        return partial(open_session, self.generator, self.plan.serving.serve_batch, self._count)

    def _count(self, prompt: Prompt) -> int:
        if prompt.ids is not None:
            return len(prompt.ids)
        assert self.renderer is not None
        return len(self.renderer.prompt_ids(prompt.messages, prompt.tools))


def load(targets: Mapping[str, Target], *, force: bool = False) -> dict[str, Served]:
    """Loads the models to serve; adapters share their base model if the engine supports it.

    Raises:
        UsageError: a model cannot be served.
    """
    for target in targets.values():
        check(target.plan)
        target.check(force=force)
    plans = {name: target.plan for name, target in targets.items()}
    scoring = [name for name, plan in plans.items() if plan.stage.component.head != "causal_lm"]
    if scoring and len(plans) > 1:
        reason = f"{scoring[0]} is a reward model, which must be served alone"
        raise UsageError(Problem(reason, hint="start a separate server for it"))
    if scoring:
        (name,) = scoring
        plan = plans[name]
        judge = plan.engine.component.judge(plan)
        bounds = Bounds.of(plan.serving, plan.data.cutoff_len)
        return {name: Served(name=name, plan=plan, bounds=bounds, preparer=Preparer({}), generator=None, judge=judge)}
    return _load_answering(plans)


def _load_answering(plans: Mapping[str, Plan]) -> dict[str, Served]:
    """Creates the preparer before loading the model, so that its forks do not hold the model."""
    renderers = {
        name: Renderer.from_plan(plan, plan.plugins.hook.ft_load_tokenizer(plan=plan)) for name, plan in plans.items()
    }
    for renderer in renderers.values():
        _ = renderer.thinks  # reports a template that exceeds its limits
    notations = {name: learn(renderer) for name, renderer in renderers.items()}
    preparer = Preparer(renderers)
    try:
        generators = next(iter(plans.values())).engine.component.load_all(plans)
    except BaseException:
        preparer.close()
        raise
    return {
        name: Served(
            name=name,
            plan=plans[name],
            bounds=Bounds.of(plans[name].serving, generator.context),
            preparer=preparer,
            generator=generator,
            renderer=renderers[name],
            notation=notations[name],
        )
        for name, generator in generators.items()
    }


def check(plan: Plan) -> None:
    """Checks options that the server does not support.

    Raises:
        UsageError: with the option.
    """
    if plan.generation.num_beams > 1:
        where = plan.options["num_beams"].origin if "num_beams" in plan.options else ""
        raise UsageError(Problem("the server does not support beam search", where, "write num_beams: 1"))
