"""The trainer that all stages share: exact means over the global batch, atomic checkpoints, logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, speed_metrics

from ftcore.api.model_transform import Slot
from ftcore.api.plan import Run
from ftcore.data.pipeline.streaming import Stream
from ftcore.errors import Problem, RunError, UsageError
from ftcore.training.backend import BackendRuntime, backend_of
from ftcore.training.batching.collators import Batch, collate, tokens_read
from ftcore.training.batching.samplers import EpochBatches, EpochLoader
from ftcore.training.batching.shared_prefix import PrefixSharingCollator
from ftcore.training.batching.streaming_loader import StreamBatches, StreamLoader
from ftcore.training.batching.token_budget import token_batches
from ftcore.training.callbacks.early_stopping import early_stopping_callbacks, stopped_early
from ftcore.training.callbacks.hub_upload import HubUploadCallback
from ftcore.training.callbacks.neftune import NeftuneNoise
from ftcore.training.callbacks.progress import ProgressCallback
from ftcore.training.callbacks.signals import StopSignals
from ftcore.training.checkpointing.resume import ResumableTrainer
from ftcore.training.checkpointing.state import prepare_backend
from ftcore.training.cost_model.prefix import sharing_rule
from ftcore.training.forward.causal_lm import CausalLMForward
from ftcore.training.model_transforms.apply import ModelTransforms, registered_transforms
from ftcore.training.parallel.cpu_threads.pool import CallersThread, ThreadPool
from ftcore.training.step.executor import MicroBatchExecutor
from ftcore.training.step.guard import KeepRowsCollator, NotFiniteError, StepGuard, out_of_memory, something_to_train
from ftcore.training.step.metrics import MetricAccumulator, merged
from ftcore.training.step.micro_batching import regroup
from ftcore.training.training_arguments import tensorboard_folder, training_arguments

T = TypeVar("T")


class FtTrainer(MicroBatchExecutor, ResumableTrainer):
    """Trains on the weighted mean of the losses over the labels of each global batch.

    A stage with another loss overrides `loss_sum` and `weight`, and `make_scorer` where the model has another head.
    Mean, accumulation, evaluation, checkpoints, logs and signals stay. A log line holds the mean of each `log_metric`
    since the line before; an evaluation holds the mean over its set.

    Args:
        run: plan, tokenizer and the model to which the method has been applied.
        train: rows for `collate`, with ``places``; None where the run only evaluates.
        evaluation: the same; None for none.
        collator: instead of `collate`.
        callbacks: further callbacks, besides those of plugins (``ft_callbacks``).
    """

    loss_is_scaled_for_ga = True
    neftune_noise_alpha: float | None
    optimizer: Any
    control: Any
    leaves_out = 0
    """Rows per epoch that fill no batch, as last reported."""

    def __init__(
        self,
        run: Run,
        *,
        train: Any,
        evaluation: Any = None,
        collator: Any = collate,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.plan, self.tokenizer, self.phase = run.plan, run.tokenizer, run.phase
        self.backend: BackendRuntime = backend_of(run)
        cached = run.model.config.use_cache if hasattr(run.model.config, "use_cache") else None
        plugins = [callback for found in run.plan.plugins.hook.ft_callbacks(plan=run.plan) for callback in found]
        self.reports = ProgressCallback(run.plan.output_dir, bar=not run.plan.transformers.get("disable_tqdm"))
        self.uploads = HubUploadCallback(run.plan, self.reports.info) if run.plan.hub.push_to_hub else None
        uploads = [] if self.uploads is None else [self.uploads]
        with tensorboard_folder(run.plan):
            super().__init__(
                model=run.model,
                args=training_arguments(run.plan),
                data_collator=collator,
                train_dataset=train,
                eval_dataset=evaluation,
                callbacks=[self.reports, *early_stopping_callbacks(run.plan), *uploads, *callbacks, *plugins],
            )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # transformers then leaves the division of the loss to `compute_loss`
        if cached is not None:
            run.model.config.use_cache = cached  # Trainer changes it, and the change would be saved with the model
        prepare_backend(self)  # first: all later computations, and keys of caches, depend on its choices
        self.scorer = self.make_scorer(run.model)
        self.transforms = ModelTransforms(self, registered_transforms(run.plan, self.backend))
        self.transforms.apply(until=Slot.CAPABILITIES)
        self.noise = self._noise()  # after the probe: results for a model with hooks are not cached
        self.data_collator = self.sharing_collator(self.scorer)  # depends on the probed capabilities and on noise
        self.meters = MetricAccumulator()
        self._measuring = self.meters
        self.start_pool()  # depends on capabilities, collator and noise
        self.transforms.apply()
        self.reports.info(f"model transforms: {self.transforms.line}")
        self.signals = StopSignals()
        self.guard = StepGuard(self)

    # ---- what model transforms ask ----

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of forward passes."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    @property
    def executor(self) -> ThreadPool | CallersThread:
        """Runs jobs with a worker's number of threads."""
        return CallersThread() if self.pool is None else self.pool

    def train_loader(self) -> EpochLoader | StreamLoader:
        """The loader of the training rows."""
        return self.get_train_dataloader()

    # ---- methods that a stage may override ----

    def loss_sum(self, batch: Batch) -> torch.Tensor:
        """Weighted sum of the losses of a micro-batch, a scalar with a gradient."""
        return self.scorer.weighted_nll(batch)

    def eval_loss_sum(self, batch: Batch) -> torch.Tensor:
        """The same in an evaluation, where a stage may log further metrics."""
        return self.loss_sum(batch)

    def weight(self, batch: Batch) -> float:
        """The total weight of the terms of `loss_sum`."""
        return float(batch["weights"].sum(dtype=torch.float64))

    def make_scorer(self, model: Any) -> Any:
        """The forward pass of a model."""
        scorer = CausalLMForward(model, self.backend)
        scorer.smoothing = self.plan.training.label_smoothing_factor
        return scorer

    def comparison_context(self, scorer: Any) -> AbstractContextManager[Any]:
        """The context in which two ways of computing a scorer's model are compared."""
        # mixed dtypes need autocast; all-float32 models are compared without it, as it would round
        return self.accelerator.autocast() if scorer.compute_dtype.itemsize < 4 else nullcontext()

    def sharing_collator(self, scorer: Any, strict: bool = True) -> PrefixSharingCollator:
        """The trainer's collator with shared prefixes, as ``share_prompt`` says.

        Args:
            scorer: of the trainer's model, or of an auxiliary model.
            strict: whether ``share_prompt: true`` is an error where the scorer's model cannot share prefixes.
        """
        own = self.data_collator
        wish = self.plan.training.share_prompt
        wish = "auto" if wish is True and not strict else wish
        with self.comparison_context(scorer):
            shares = sharing_rule(scorer, wish, self.noise is not None)
        return PrefixSharingCollator(own.collate if isinstance(own, PrefixSharingCollator) else own, shares)

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Further values to log, computed from the means of the metrics."""
        return {}

    # ---- the loss ----

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See `ResumableTrainer.train`; data without labels is refused before the first step."""
        self._check_labels()
        try:
            output = super().train(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error, self.backend):
                raise
            raise self.guard.too_large("outside the forward and backward passes") from error
        self._show_averages()
        if (line := stopped_early(self)) and self.args.should_save:
            self.reports.info(line)
        return output

    def _check_labels(self) -> None:
        wanted = {"training": self.train_dataset}
        if self.args.eval_strategy != "no" and not isinstance(self.eval_dataset, dict):
            wanted["evaluation"] = self.eval_dataset
        for name, dataset in wanted.items():
            if dataset is None or isinstance(dataset, Stream):
                continue
            if not something_to_train(dataset, self.data_collator, self.weight):
                hint = "raise cutoff_len, or check the rows with ft preview"
                raise UsageError(Problem(f"no token of the {name} data has a label, so it has no loss", hint=hint))

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, total = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = regroup(self, batches)
        self.guard.begin(batches, float(total))
        return batches, total

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> torch.Tensor:
        total = torch.tensor(sum(self.weight(batch) for batch in batch_samples), dtype=torch.float64, device=device)
        return self.accelerator.gather(total).sum()

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        once = super().training_step

        def done(parts: Sequence[Batch]) -> list[torch.Tensor]:
            if len(parts) > 1 and self.runs_concurrently:
                return self.run_concurrently(model, parts, num_items_in_batch)
            return [once(model, part, num_items_in_batch) for part in parts]

        return self.guard.micro_batch(inputs, done)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        total = self._sum_through(model, inputs)
        if not torch.isfinite(total) and self.guard.stops_at_losses:
            raise NotFiniteError("loss", total.item(), inputs["index"])
        # DDP averages gradients over processes, and the loss is a sum over them: hence the factor
        return total * self.accelerator.num_processes / num_items_in_batch.to(total.dtype)

    def _sum_through(self, model: Any, batch: Batch) -> torch.Tensor:
        """`loss_sum` inside the wrapper (DDP), if there is one: the wrapper's forward prepares the gradient
        reduction."""
        if self.noise is not None:
            self.noise.expect(batch)
        with self.accelerator.autocast():
            if model is self.model:
                return self.loss_sum(batch)
            own = self.model.forward

            def through(batch: Batch) -> torch.Tensor:
                self.model.forward = own
                return self.loss_sum(batch)

            self.model.forward = through
            return model(batch)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        return self.guard.check(super()._get_grad_norm(model, grad_norm))

    def _noise(self) -> NeftuneNoise | None:
        """NEFTune by ft's hook instead of transformers', which is off with ``neftune_noise_alpha`` None."""
        alpha, self.neftune_noise_alpha = self.neftune_noise_alpha, None
        return None if alpha is None else NeftuneNoise(self.model.get_input_embeddings(), alpha)

    # ---- data ----

    def get_train_dataloader(self) -> EpochLoader | StreamLoader:
        if isinstance(self.train_dataset, Stream):
            count = self.args.max_steps * self.args.gradient_accumulation_steps
            share = (self._train_batch_size, self.args.process_index, self.args.world_size)
            self.streamed = StreamBatches(self.train_dataset, count, *share)
            return StreamLoader(self.streamed, KeepRowsCollator(self.data_collator), pin_memory=self._pins())
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        order = None if self.plan.data.disable_shuffling else seed
        share = (order, self.args.process_index, self.args.world_size)
        drops = self.args.dataloader_drop_last
        batches = EpochBatches(len(self.train_dataset), self._train_batch_size, *share, whole=drops)
        if (tokens := self.plan.training.tokens_per_batch) is not None:
            batches = token_batches(self.train_dataset, tokens, self.args, order)
        self._say_left_out(batches)
        return self._loading(self.train_dataset, batches, KeepRowsCollator(self.data_collator))

    def _say_left_out(self, batches: EpochBatches) -> None:
        """Reports rows that fill no batch (``dataloader_drop_last``)."""
        together = batches.size * batches.processes
        if not batches.used:
            message = f"dataloader_drop_last is true, and {batches.rows} rows fill no batch of {together}"
            hint = "lower per_device_train_batch_size, or remove dataloader_drop_last"
            raise UsageError(Problem(message, self.plan.where("dataloader_drop_last"), hint))
        left, told = batches.rows - batches.used, self.leaves_out
        self.leaves_out = left
        if left and told != left and self.args.should_save:
            self.reports.info(f"dataloader_drop_last: {left} of {batches.rows} rows are not used in each epoch")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> EpochLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        return self._loader(
            self.eval_dataset if eval_dataset is None else eval_dataset, self.args.eval_batch_size, None
        )

    def _loader(self, dataset: Any, size: int, seed: int | None) -> EpochLoader:
        batches = EpochBatches(len(dataset), size, seed, self.args.process_index, self.args.world_size)
        return self._loading(dataset, batches, self.data_collator)

    def _loading(self, dataset: Any, batches: EpochBatches, collator: Any) -> EpochLoader:
        return EpochLoader(
            dataset,
            batches,
            collate_fn=collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self._pins(),
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )

    def _pins(self) -> bool:
        return self.args.dataloader_pin_memory and torch.cuda.is_available()

    # ---- optimizer ----

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            method = self.plan.method
            found: dict[tuple[bool, float], dict[str, Any]] = {}
            for name, tensor in self.model.named_parameters():
                if tensor.requires_grad:
                    decay = self.args.weight_decay if name in decayed else 0.0
                    rate = method.component.learning_rate(method.options, name, tensor, self.args.learning_rate)
                    key = (name not in decayed, rate)
                    found.setdefault(key, {"params": [], "weight_decay": decay, "lr": rate})["params"].append(tensor)
            # groups with the run's learning rate first: the first group's rate is logged
            first = sorted(found, key=lambda key: (key[0], key[1] != self.args.learning_rate))
            groups = [found[key] for key in first]
            self.optimizer = self.plan.optimizer.component.create_for(self.plan, self.model, groups)
            # schedules with a final rate read the initial rate here, not from the groups
            self.optimizer.defaults["lr"] = self.args.learning_rate
        return self.optimizer

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        """Counts the tokens of all sequences; a shared prefix counts once per sequence."""
        count = torch.tensor(tokens_read(inputs), device=self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(count).sum())

    def floating_point_ops(self, inputs: Batch) -> float:
        if not hasattr(self, "_dense"):
            self._dense = self.model.num_parameters(exclude_embeddings=True)
        return 6.0 * inputs["input_ids"].numel() * self._dense

    # ---- evaluation ----

    def _show_averages(self) -> None:
        """Switches schedule-free optimizers to the averaged weights, which are those to evaluate and to save."""
        if callable(switch := getattr(self.optimizer, "eval", None)):
            switch()

    def evaluation_loop(
        self,
        dataloader: EpochLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """`eval_loss`, and the means of the metrics that it logs."""
        self.model.eval()
        self._show_averages()
        self._measuring = MetricAccumulator()
        with self.phase("evaluating"):
            loss = self.eval_loss(dataloader)
        measured, self._measuring = self._means(self._measuring), self.meters
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **measured}.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def eval_loss(self, dataloader: EpochLoader) -> float:
        """Weighted mean of the losses over all labels of the set."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad(), self.accelerator.autocast():
            for loss, weight in self.each(self._evaluated, self.evaluation_batches(dataloader)):
                sums += torch.stack([loss, torch.tensor(weight).to(sums)])
        total, weight = self.accelerator.reduce(sums, "sum").tolist()
        if not weight:
            raise RunError("no token of the evaluation data has a label, so it has no loss")
        return float(total / weight)

    def _evaluated(self, batch: Batch) -> tuple[torch.Tensor, float]:
        return self.eval_loss_sum(batch).double(), self.weight(batch)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        wanted = self.args.metric_for_best_model
        if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
            there = ", ".join(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
            raise RunError(f"metric_for_best_model: the evaluation has no {wanted!r}; it has {there}")
        return super()._determine_best_metric(metrics, trial)

    def evaluation_batches(self, dataloader: EpochLoader) -> Iterator[Batch]:
        """The loader's batches on the device, for an evaluation; a signal stops the run between them."""
        for batch in self.interruptible(dataloader):
            yield self._prepare_inputs(batch)

    def interruptible(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts of an evaluation; a signal stops the run between them."""
        for part in parts:
            yield part
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            if self.is_in_train:
                self.evaluating = True
                self.stop_if_asked()
        self.evaluating = False

    def _means(self, meters: MetricAccumulator) -> dict[str, float]:
        """Means of the metrics of all processes."""
        means = merged(meters, self.args.world_size).means()
        return means | self.derived(means)

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.state.epoch is not None:
            # for transformers a stream is one epoch of max_steps; its cursor counts the real epochs
            logs["epoch"] = self.streamed.cursor.epoch if self.streamed is not None else round(self.state.epoch, 6)
        if start_time is not None:
            tokens = self.state.num_input_tokens_seen - self._initial_num_input_tokens_seen
            speed = speed_metrics("train", start_time, num_tokens=tokens)
            logs["throughput"] = speed["train_tokens_per_second"]
            logs["num_input_tokens_seen"] = self.state.num_input_tokens_seen
        if "loss" in logs:
            logs |= self._means(self.meters)
            self.meters.clear()
        self.guard.correct(logs)
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)
