"""Generation with transformers, in this process: base model, adapters, tokenizer, template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.api.components import Generator, InferenceEngine, Judge
from ftcore.errors import Problem, UsageError
from ftcore.resources import hardware

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.api.plan import Plan


class HuggingFace(InferenceEngine):
    """Loads what the plan names and answers with ``generate``."""

    def load(self, plan: Plan) -> Generator:
        """Tokenizer and template first, so that what is wrong with them is said before the weights are read."""
        from ft_plugins.engines.transformers.generator import TransformersGenerator
        from ftcore.data.chat_template.renderer import Renderer

        head = plan.stage.component.head
        if head != "causal_lm":
            reason = f"stage {plan.stage.component.name} makes a model that scores and does not answer"
            raise UsageError(Problem(reason, plan.where("stage"), "choose another run's model or adapter"))
        tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
        renderer = Renderer.from_plan(plan, tokenizer)
        return TransformersGenerator(plan, load_adapted(plan), renderer)

    def load_all(self, plans: Mapping[str, Plan]) -> Mapping[str, Generator]:
        """Several adapters on one base model, which is loaded once; a single plan as in `load`."""
        from ft_plugins.engines.transformers.multi_adapter import load_shared

        return super().load_all(plans) if len(plans) == 1 else load_shared(plans)

    def over(self, plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """The same with the run's model, in evaluation mode."""
        from ft_plugins.engines.transformers.generator import TransformersGenerator
        from ftcore.data.chat_template.renderer import Renderer

        return TransformersGenerator(plan, model.eval(), Renderer.from_plan(plan, tokenizer))

    def judge(self, plan: Plan) -> Judge:
        """A sequence-classification model of one label, or a base model with an adapter that holds its head."""
        from ft_plugins.engines.transformers.reward_head import check_head, head_problems

        stage = plan.stage.component
        if stage.head != "sequence_classification":
            reason = f"stage {stage.name} makes a model that answers and does not score"
            raise UsageError(Problem(reason, plan.where("stage"), "choose the run of a reward model"))
        where, hint = plan.where("model_name_or_path"), "write what stage rm left"
        if problems := list(head_problems(plan, where, hint)):
            raise UsageError(problems)
        from ft_plugins.engines.transformers.reward import TransformersJudge
        from ftcore.data.chat_template.renderer import Renderer

        renderer = Renderer.from_plan(plan, plan.plugins.hook.ft_load_tokenizer(plan=plan))
        model = load_adapted(plan)
        check_head(plan, model, where, hint)
        return TransformersJudge(plan, model, renderer)


def load_adapted(plan: Plan) -> PreTrainedModel:
    """The base model in ``infer_dtype``, with the adapters of ``adapter_name_or_path``, ready to infer.

    Adapters are merged in order, as training does; the last one too in float32. In half precision it stays beside the
    weights: merged into bfloat16 (8 bits) a small change would be rounded away. So it does beside quantised ones.

    Raises:
        UsageError: when the model or an adapter cannot be loaded.
    """
    import torch

    from ftcore.models.adapters import adapter_folder

    dtype = getattr(torch, infer_dtype(plan))
    kwargs: dict[str, Any] = plan.method.component.load_kwargs(plan) | {"dtype": dtype}
    model = plan.plugins.hook.ft_load_model(plan=plan, kwargs=kwargs)
    names = plan.model.adapter_name_or_path
    quantized = getattr(model, "is_quantized", False)
    if quantized and len(names) > 1:
        hint = "merge all but the last with ft export, and name that model"
        reason = "adapters cannot be merged into quantised weights without rounding them anew"
        raise UsageError(Problem(reason, plan.where("adapter_name_or_path"), hint))
    for number, name in enumerate(names, start=1):
        model = _with_adapter(model, adapter_folder(plan, name), plan, name)
        if number < len(names) or (dtype == torch.float32 and not quantized):
            model = model.merge_and_unload()
    return model.eval()


def _with_adapter(model: Any, folder: Path, plan: Plan, name: str) -> Any:
    from ft_plugins.methods.adapters import with_adapter

    try:
        return with_adapter(model, folder, trainable=False)
    except (RuntimeError, ValueError) as error:
        reason = f"adapter {name} does not fit {plan.model.model_name_or_path}: {' '.join(str(error).split())[:200]}"
        raise UsageError(
            Problem(reason, plan.where("adapter_name_or_path"), "write the model that it was trained on")
        ) from error


def infer_dtype(plan: Plan) -> str:
    """What ``auto`` means here."""
    if plan.model.infer_dtype != "auto":
        return plan.model.infer_dtype
    return "bfloat16" if hardware.detect().bf16 else "float32"
