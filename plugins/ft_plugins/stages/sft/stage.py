"""Supervised fine-tuning: next-token loss on the assistant's turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ft_plugins.stages.sft.options import AccuracyOptions, SupervisedOptions
from ft_plugins.stages.sft.text_metrics import missing_packages
from ftcore.api.components import InferenceEngine, Stage
from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ft_plugins.stages.sft.objective import NextToken
    from ftcore.api.plan import Plan, Run


class SupervisedFineTuning(Stage):
    """Trains on the assistant's turns of conversations."""

    Options = SupervisedOptions
    samples: ClassVar[tuple[str, ...]] = ("Chat",)
    learns_from_answers: ClassVar[bool] = False
    packs_by_default: ClassVar[bool | None] = False
    supports_streaming: ClassVar[bool] = True
    supports_label_smoothing: ClassVar[bool] = True
    supports_prediction: ClassVar[bool] = True
    supports_images: ClassVar[bool] = True

    def datasets(self, run: Run) -> Any:
        """Conversations tokenised, with a weight for each token."""
        from ftcore.data.pipeline.loading import chat_datasets

        data = chat_datasets(run.plan, run.tokenizer)
        run.pictures = data.pictures
        if run.plan.training.do_predict and data.eval is not None and data.eval.has_images:
            message = "do_predict is true, and evaluation rows have images, which do_predict does not support"
            raise UsageError(Problem(message, run.plan.where("do_predict"), "remove do_predict, or those rows"))
        return data

    def objective(self, run: Run) -> NextToken:
        """Next-token loss, reading images where the model does."""
        from ft_plugins.stages.sft.objective import next_token

        options = run.plan.stage.options
        assert isinstance(options, AccuracyOptions)
        return next_token(options.compute_accuracy, run.pictures)

    def predict(self, run: Run, trainer: Any) -> Mapping[str, float]:
        """Answers the last turns of the evaluation data's conversations."""
        from ft_plugins.stages.sft.predicting import predict

        return predict(run, trainer)


def problems(plan: Plan) -> Iterable[Problem]:
    """``do_predict`` without ``predict_with_generate`` and vice versa; engines and packages that it needs."""
    options, training = plan.stage.options, plan.training
    assert isinstance(options, SupervisedOptions)
    if training.do_predict and not options.predict_with_generate:
        hint = "write predict_with_generate: true; for the loss write do_eval: true"
        yield Problem("do_predict is true, and predict_with_generate is false", plan.where("do_predict"), hint)
    if options.predict_with_generate and not training.do_predict:
        hint = "write do_predict: true, or remove it"
        yield Problem(
            "predict_with_generate is true, and do_predict is false", plan.where("predict_with_generate"), hint
        )
    if training.do_predict and type(plan.engine.component).over is InferenceEngine.over:
        name = plan.engine.component.name
        reason = f"engine {name} cannot generate with the model of a run, because it loads models itself"
        yield Problem(reason, plan.where("infer_backend"), "remove infer_backend")
    if training.do_predict and (missing := missing_packages()):
        hint = f"pip install {' '.join(missing)}"
        yield Problem("predict_with_generate needs packages that are not installed", plan.where("do_predict"), hint)
