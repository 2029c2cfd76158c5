"""The trainer of all stages: it puts the parts of a run together, and is what these parts see of it.

Both use the vocabulary that users have: transformers' TrainingArguments, TrainerState, TrainerControl, TrainerCallback
and trackers. Processes and mixed precision are accelerate's. The loop (`ftcore.training.loop`) is ft's own, because
transformers' Trainer has no public way to write checkpoints whole, to resume within an evaluation, to skip a step, or
to divide a step among workers (docs/development/training-loop.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback, enable_full_determinism, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState
from transformers.trainer_utils import TrainerMemoryTracker, TrainOutput, speed_metrics
from transformers.utils import logging as transformers_logging

from ftcore.api.model_transform import Slot
from ftcore.api.plan import Run
from ftcore.data.pipeline.streaming import Stream
from ftcore.errors import Problem, UsageError
from ftcore.training.backend import BackendRuntime, backend_of
from ftcore.training.batching.collators import on_device
from ftcore.training.batching.loaders import Loaders
from ftcore.training.batching.rollouts import RolloutBuffer
from ftcore.training.batching.samplers import EpochLoader
from ftcore.training.batching.shared_prefix import PrefixSharingCollator
from ftcore.training.batching.streaming_loader import StreamBatches, StreamLoader
from ftcore.training.callbacks.early_stopping import early_stopping_callbacks, stopped_early
from ftcore.training.callbacks.hub_upload import HubUploadCallback
from ftcore.training.callbacks.neftune import NeftuneNoise
from ftcore.training.callbacks.progress import ProgressCallback
from ftcore.training.callbacks.signals import InterruptedRunError, StopSignals, shown
from ftcore.training.checkpointing.checkpointer import Checkpointer
from ftcore.training.checkpointing.state import prepare_backend
from ftcore.training.cost_model.prefix import sharing_rule
from ftcore.training.cost_model.tokens import CostModel
from ftcore.training.evaluation import Evaluator
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.loop import TrainingLoop
from ftcore.training.model_transforms.apply import ModelTransforms, registered_transforms
from ftcore.training.model_transforms.capabilities import comparison_context
from ftcore.training.numerics import evaluating
from ftcore.training.objective import Objective
from ftcore.training.optimization import Schedule
from ftcore.training.parallel.accelerated import strategy_of
from ftcore.training.reference.logprob_cache import add_reference_logprobs
from ftcore.training.step.executor import MicroBatchExecutor, SequentialExecutor
from ftcore.training.step.guard import StepGuard, out_of_memory, something_to_train
from ftcore.training.step.metrics import MetricAccumulator, MetricLog, RunningLoss
from ftcore.training.training_arguments import tensorboard_folder, training_arguments

T = TypeVar("T")
U = TypeVar("U")


class Trainer:
    """Trains a model on a stage's objective: the weighted mean of the losses over each global batch.

    A log line holds the mean of each metric since the line before; an evaluation holds the mean over its set.

    Args:
        run: plan, tokenizer and the model to which the method has been applied.
        objective: of the stage.
        train: rows for the objective's ``collate``, with ``places``; None where the run only evaluates.
        evaluation: the same; None for none.
        callbacks: further callbacks, besides those of plugins (``ft_callbacks``).
    """

    def __init__(
        self,
        run: Run,
        objective: Objective,
        *,
        train: Any = None,
        evaluation: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        plan = run.plan
        self.plan, self.tokenizer, self.objective, self.model = plan, run.tokenizer, objective, run.model
        self.backend: BackendRuntime = backend_of(run)
        self.phase: Callable[[str], AbstractContextManager[Any]] = run.phase
        self.args = args = training_arguments(plan)
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        self.strategy = strategy_of(args, self.model, plan.gradient_checkpointing)
        self.memory = TrainerMemoryTracker(args.skip_memory_metrics)  # tells its caller by the function's name
        self.memory.start()
        transformers_logging.set_verbosity(args.get_process_log_level())
        # bitsandbytes' weights stay where they were loaded
        if getattr(self.model, "quantization_method", None) != "bitsandbytes":
            self.model.to(self.strategy.device)
        self._start_callbacks(callbacks)
        self.metrics, self.running_loss = MetricLog(), RunningLoss(self.strategy.device, 0)
        self.optimizer: Any = None
        self.schedule: Schedule | None = None
        self.executor: MicroBatchExecutor = SequentialExecutor()
        self.evaluating = self.training = False
        self.position: tuple[int, int] | None = None
        self.flops = 0.0
        self.tokens_before = 0
        self.rollouts: RolloutBuffer | None = None
        self.streamed: StreamBatches | None = None
        self.loaders = Loaders(plan, args, self.reports.info)
        self.train_dataset, self.eval_dataset = train, evaluation
        self._transform()
        self.guard, self.signals, self.checkpointer = StepGuard(self), StopSignals(), Checkpointer(self)
        self.evaluator = Evaluator(self)
        self.train_dataset, self.eval_dataset = objective.datasets(train, evaluation)
        if objective.rollouts is not None and self.train_dataset is not None:
            self.rollouts = RolloutBuffer(objective, self.train_dataset, args, self.loaders.order)
        objective.bind(self)
        if objective.reference_metric is not None:
            sets = (self.train_dataset, self.eval_dataset)
            self.train_dataset, self.eval_dataset = add_reference_logprobs(
                self, objective.reference_metric, sets, objective.load_reference
            )
        self.memory.stop_and_update_metrics()

    # ---- set-up ----

    def _start_callbacks(self, callbacks: Sequence[TrainerCallback]) -> None:
        plan, args = self.plan, self.args
        plugins = [callback for found in plan.plugins.hook.ft_callbacks(plan=plan) for callback in found]
        self.reports = ProgressCallback(plan.output_dir, bar=not plan.transformers.get("disable_tqdm"))
        self.uploads = HubUploadCallback(plan, self.reports.info) if plan.hub.push_to_hub else None
        uploads = [] if self.uploads is None else [self.uploads]
        with tensorboard_folder(plan):
            trackers = [kind() for kind in get_reporting_integration_callbacks(args.report_to)]
        own = [self.reports, *early_stopping_callbacks(plan), *uploads, *callbacks, *plugins]
        every = [DefaultFlowCallback(), *trackers, *own]
        self.callback_handler = CallbackHandler(every, self.model, self.tokenizer, None, None)
        if args.should_save:
            plan.output_dir.mkdir(parents=True, exist_ok=True)
        self.control = TrainerControl()
        self.state = TrainerState(is_local_process_zero=args.local_process_index == 0)
        self.state.is_world_process_zero = self.strategy.rank == 0
        self.event("on_init_end")

    def _transform(self) -> None:
        """Applies the model transforms in the order of their slots, and makes what they need in between."""
        plan, model = self.plan, self.model
        self.noise: NeftuneNoise | None = None
        prepare_backend(self)  # first: all later computations, and keys of caches, depend on its choices
        self.transforms = ModelTransforms(self, registered_transforms(plan, self.backend))
        self.transforms.apply(until=Slot.ADAPTERS)
        self.objective.before_transforms(model)
        self.scorer = self.objective.forward_of(model, self.backend)
        self.scorer.smoothing = plan.training.label_smoothing_factor
        self.scorer.full_tensor = self.strategy.full_tensor
        self.transforms.apply(until=Slot.CAPABILITIES)
        alpha = self.args.neftune_noise_alpha
        if alpha is not None:  # after the probe: results for a model with hooks are not cached
            self.noise = NeftuneNoise(model.get_input_embeddings(), alpha)
        self.data_collator = self.sharing_collator(self.scorer)  # depends on the probed capabilities and on noise
        self.executor = self.backend.executor(self)  # depends on capabilities, collator and noise
        self.transforms.apply()
        self.reports.info(f"model transforms: {self.transforms.line or 'none'}")

    def sharing_collator(self, scorer: Any, strict: bool = True) -> PrefixSharingCollator:
        """The objective's collator with shared prefixes, as ``share_prompt`` says.

        Args:
            scorer: of the trainer's model, or of an auxiliary model.
            strict: whether ``share_prompt: true`` is an error where the scorer's model cannot share prefixes.
        """
        wish = self.plan.training.share_prompt
        wish = "auto" if wish is True and not strict else wish
        with comparison_context(self, scorer):
            shares = sharing_rule(scorer, wish, self.noise is not None)
        return PrefixSharingCollator(self.objective.collate, shares)

    def add_callback(self, callback: TrainerCallback) -> None:
        """Adds a callback after all others."""
        self.callback_handler.add_callback(callback)

    # ---- what the parts ask ----

    def event(self, name: str, *given: Any) -> None:
        """Tells the callbacks of an event, such as ``on_step_end``; they may change `control`."""
        self.control = getattr(self.callback_handler, name)(self.args, self.state, self.control, *given)

    @cached_property
    def loss_is_additive(self) -> bool:
        """Whether the loss of a micro-batch is the sum of its parts' losses; the stage says it."""
        return self.plan.stage.component.loss_is_additive(self.plan)

    @cached_property
    def pass_tokens(self) -> int | None:
        """Most tokens of a micro-batch, as the plan and the device's traits say; None for whole batches."""
        return self.plan.training.pass_tokens(self.plan.traits.pass_tokens)

    @property
    def runs_concurrently(self) -> bool:
        """Whether the micro-batches of a step run several at a time."""
        return self.executor.workers > 1 and self.loss_is_additive and self.executor.concurrent_training

    @cached_property
    def cost_model(self) -> CostModel | None:
        """The cost of tokens; None for a plugin's own scorer."""
        return CostModel.of(self.scorer) if isinstance(self.scorer, CausalLMForward) else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes."""
        return self.strategy.autocast()

    @contextmanager
    def estimating(self) -> Iterator[None]:
        """The model in evaluation mode, without gradients: for estimates (`Objective.begin_step`)."""
        with evaluating(self.model), self.autocast():
            yield

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return 0.0 if self.schedule is None else self.schedule.rate()

    def on_device(self, batch: Any) -> Any:
        """The batch with its tensors on the device of this process."""
        return on_device(batch, self.strategy.device)

    def each(self, job: Callable[[T], U], parts: Iterable[T]) -> Iterator[U]:
        """The results of a job for each part, in order; several at a time where the executor does that.

        Metrics that the job logs are added in the order of the parts.
        """
        if self.executor.workers == 1:
            yield from self.executor.map(job, parts)
            return

        def noting(part: T) -> tuple[U, MetricAccumulator]:
            with self.metrics.apart() as own:
                return job(part), own

        for result, own in self.executor.map(noting, parts):
            self.metrics.take(own)
            yield result

    # ---- training ----

    def train(self, resume_from_checkpoint: Path | str | None = None) -> TrainOutput:
        """Trains, resuming from the checkpoint that the plan selects.

        Args:
            resume_from_checkpoint: instead of the plan's ``resume_from_checkpoint``.

        Raises:
            InterruptedRunError: after SIGTERM or Ctrl-C, once the checkpoint is written.
            RunError: a loss or gradient is not finite, memory does not suffice, or a checkpoint cannot be written.
            UsageError: the checkpoint is that of another run, or no token has a label.
        """
        self._check_labels()
        resumed = self.checkpointer.start(resume_from_checkpoint or self.plan.training.resume_from_checkpoint)
        self.training = True
        metrics: dict[str, float] = {}
        self.memory.start()
        try:
            with self.signals:
                try:
                    metrics = TrainingLoop(self).run(resumed)
                finally:
                    self.memory.stop_and_update_metrics(metrics)
                self._finish(metrics)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error, self.backend):
                raise
            raise self.guard.too_large("outside the forward and backward passes") from error
        finally:
            self.training = False
            self.reports.close()
        if self.state.global_step == self.running_loss.first_step and self.strategy.is_main:
            stopped = "a callback stopped the run before its first step"
            done = f"{resumed} is the last step of this run: nothing left to train"
            self.reports.info(stopped if resumed is None else done)
        if (line := stopped_early(self)) and self.strategy.is_main:
            self.reports.info(line)
        return TrainOutput(self.state.global_step, metrics.get("train_loss", 0.0), metrics)

    def _check_labels(self) -> None:
        """Data without labels is refused before the first step."""
        if self.rollouts is not None:
            return  # its rows do not exist yet
        wanted = {"training": self.train_dataset}
        if self.args.eval_strategy != "no" and not isinstance(self.eval_dataset, dict):
            wanted["evaluation"] = self.eval_dataset
        for name, dataset in wanted.items():
            if dataset is None or isinstance(dataset, Stream):
                continue
            if not something_to_train(dataset, self.data_collator, self.objective.weight):
                hint = "raise cutoff_len, or check the rows with ft preview"
                raise UsageError(Problem(f"no token of the {name} data has a label, so it has no loss", hint=hint))

    def train_loader(self) -> EpochLoader | StreamLoader:
        """The loader of the training rows."""
        return self.loaders.training(self.train_dataset, self.data_collator, self.rollouts)

    def _finish(self, metrics: dict[str, float]) -> None:
        """Logs the means of the run, and loads the best checkpoint if the plan wants that."""
        self.log(metrics)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self.checkpointer.load_best()
        self.event("on_train_end")
        self.show_averages()

    def store_flops(self) -> None:
        """Adds the operations since the last call to the state."""
        self.state.total_flos += sum(self.strategy.gather_object(self.flops))
        self.flops = 0.0

    # ---- checkpoints and logs ----

    def save_checkpoint(self) -> None:
        """Writes a checkpoint of the current step."""
        self.store_flops()
        self.checkpointer.save()

    def save_model(self, folder: Path | str | None = None) -> None:
        """Saves the trained weights, and the tokenizer with its chat template; in the first process only.

        Args:
            folder: None for the run's.
        """
        self.checkpointer.save_model(Path(folder or self.plan.output_dir))

    def stop_if_asked(self) -> None:
        """Writes a checkpoint and ends the run if any process has received a signal."""
        number = int(self.signals.received or 0)
        if self.strategy.world_size > 1:
            number = self.strategy.max(number)
        if not number:
            return
        step, name = self.state.global_step, shown(number)
        folder = self.plan.output_dir / f"checkpoint-{step}"
        if folder in self.checkpointer.left:
            return  # a foreign folder has this name: the run stops one step later, or ends
        if step and self.checkpointer.saved != step:
            self.save_checkpoint()
        written = f"{folder} is written" if step else "no checkpoint was written yet"
        raise InterruptedRunError(
            f"stopped by {name} at step {step}; {written}; run the same command to resume", number
        )

    def log(self, logs: dict[str, float], began: float | None = None) -> None:
        """Adds epoch, speed and metrics to a log line, in place, and gives it to the callbacks.

        Args:
            logs: with ``loss`` in training, ``train_loss`` at its end, ``eval_loss`` of an evaluation.
            began: when training started, in seconds since 1970, for the throughput.
        """
        state = self.state
        if state.epoch is not None:
            # a stream is trained as one epoch of max_steps; its cursor counts the real epochs
            logs["epoch"] = self.streamed.cursor.epoch if self.streamed is not None else round(state.epoch, 6)
        if began is not None:
            tokens = state.num_input_tokens_seen - self.tokens_before
            logs["throughput"] = speed_metrics("train", began, num_tokens=tokens)["train_tokens_per_second"]
            logs["num_input_tokens_seen"] = state.num_input_tokens_seen
        if "loss" in logs:
            logs |= self.means(self.metrics.training)
            self.metrics.training.clear()
        self.guard.correct(logs)
        state.log_history.append({**logs, "step": state.global_step})
        self.event("on_log", logs)

    # ---- evaluation ----

    def evaluate(self, dataset: Any = None, prefix: str = "eval") -> dict[str, float]:
        """See `ftcore.training.evaluation.Evaluator.evaluate`."""
        return self.evaluator.evaluate(self.eval_dataset if dataset is None else dataset, prefix)

    def interruptible(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts of an evaluation; a signal stops the run between them."""
        for part in parts:
            yield part
            self.event("on_prediction_step")
            if self.training:
                self.evaluating = True
                self.stop_if_asked()
        self.evaluating = False

    def show_averages(self) -> None:
        """Switches schedule-free optimizers to the averaged weights, which are those to evaluate and to save."""
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def means(self, metrics: MetricAccumulator) -> dict[str, float]:
        """Means of the metrics of all processes, and what the objective derives from them."""
        found = metrics.means(self.strategy)
        return found | self.objective.derived(found)


def __getattr__(name: str) -> Any:
    if name == "FtTrainer":
        raise ImportError(
            "ftcore.training.trainer.FtTrainer went in ftcore 0.2: a stage returns an Objective from objective(run), "
            "with loss_sum and weight; see docs/plugins.md"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
