"""The inference engine of transformers, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ft_plugins.engines.transformers.loading import load_adapted
from ftcore.api.components import Generator, InferenceEngine, Judge
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftcore.api.plan import Plan


class HuggingFace(InferenceEngine):
    """Loads the plan's model and generates with transformers."""

    def load(self, plan: Plan) -> Generator:
        """Loads tokenizer and template first, so that their errors are reported before loading the weights."""
        from ft_plugins.engines.transformers.generator import TransformersGenerator
        from ftcore.data.chat_template.renderer import Renderer

        head = plan.stage.component.head
        if head != "causal_lm":
            reason = f"stage {plan.stage.component.name} trains a reward model, which does not generate text"
            raise UsageError(Problem(reason, plan.where("stage"), "choose another run's model or adapter"))
        tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
        renderer = Renderer.from_plan(plan, tokenizer)
        return TransformersGenerator(plan, load_adapted(plan), renderer)

    def load_all(self, plans: Mapping[str, Plan]) -> Mapping[str, Generator]:
        """Loads several adapters on one shared base model; a single plan as in `load`."""
        from ft_plugins.engines.transformers.multi_adapter import load_shared

        return super().load_all(plans) if len(plans) == 1 else load_shared(plans)

    def over(self, plan: Plan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """A generator over the model of a running training, in evaluation mode."""
        from ft_plugins.engines.transformers.generator import TransformersGenerator
        from ftcore.data.chat_template.renderer import Renderer

        return TransformersGenerator(plan, model.eval(), Renderer.from_plan(plan, tokenizer))

    def judge(self, plan: Plan) -> Judge:
        """Loads a sequence-classification model of one label, or a base model with an adapter that has the head."""
        from ft_plugins.engines.transformers.reward_head import check_head, head_problems

        stage = plan.stage.component
        if stage.head != "sequence_classification":
            reason = f"stage {stage.name} does not train a reward model"
            raise UsageError(Problem(reason, plan.where("stage"), "choose the run of a reward model"))
        where, hint = plan.where("model_name_or_path"), "write the output folder of stage rm"
        if problems := list(head_problems(plan, where, hint)):
            raise UsageError(problems)
        from ft_plugins.engines.transformers.reward import TransformersJudge
        from ftcore.data.chat_template.renderer import Renderer

        renderer = Renderer.from_plan(plan, plan.plugins.hook.ft_load_tokenizer(plan=plan))
        model = load_adapted(plan)
        check_head(plan, model, where, hint)
        return TransformersJudge(plan, model, renderer)
