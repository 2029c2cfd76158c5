"""What becomes of each field of TrainingArguments that is no option of ft's own: passed on, answered, or refused.

A field is in one of three places: an option of a group or of a component (then it is obeyed there), `PASSED_ON`, or
`ANSWERED`. A test walks all fields of the installed transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftcore.api.components import ForeignOption, Harmless
from ftcore.api.option_groups import EVALUATES

_TRACKER = "the tracker's callback in transformers"
_FLOW = "transformers' DefaultFlowCallback"
_BEST = "transformers' Trainer, and ft's checkpoints"
_LOADER = "the loader of batches"
_DDP = "accelerate, where several processes train"
_VERBOSITY = "transformers, for its own messages"

PASSED_ON: Mapping[str, str] = {
    "accelerator_config": "the plan: batches are ft's own; values under which they would be others are refused",
    "bf16_full_eval": "the plan: an evaluation computes as training does, so that this must be the precision of both",
    "data_seed": "the order of the rows",
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "ddp_backend": _DDP,
    "ddp_broadcast_buffers": _DDP,
    "ddp_bucket_cap_mb": _DDP,
    "ddp_find_unused_parameters": _DDP,
    "ddp_static_graph": _DDP,
    "debug": "transformers' DebugUnderflowOverflow",
    "disable_tqdm": "ft's progress bar, which a terminal gets unless this is true",
    "eval_delay": _FLOW,
    "eval_on_start": "transformers' Trainer",
    "fp16_full_eval": "the plan, as bf16_full_eval",
    "full_determinism": "transformers' enable_full_determinism",
    "greater_is_better": _BEST,
    "load_best_model_at_end": _BEST,
    "log_level": _VERBOSITY,
    "log_level_replica": _VERBOSITY,
    "log_on_each_node": _VERBOSITY,
    "logging_first_step": _FLOW,
    "logging_strategy": _FLOW,
    "lr_scheduler_kwargs": "the schedule",
    "metric_for_best_model": _BEST,
    "neftune_noise_alpha": "ft's noise, which is transformers' on sequences without padding",
    "project": _TRACKER,
    "run_name": _TRACKER,
    "skip_memory_metrics": "transformers' TrainerMemoryTracker",
    "tf32": "torch, by TrainingArguments",
    "torch_empty_cache_steps": "transformers' Trainer",
    "trackio_bucket_id": _TRACKER,
    "trackio_space_id": _TRACKER,
    "trackio_static_space_id": _TRACKER,
    "use_cpu": "the plan (precision, memory) and TrainingArguments",
}
"""Field -> what reads it."""

_BATCHES = Harmless("batches are ft's own, and the same")
_SHOWN = Harmless("it changes what is shown or logged only")
_WAITS = Harmless("it decides how processes find the gradients that they exchange, not what these are")
_FULL_EVAL = Harmless("an evaluation computes in the dtype of training, or the plan is refused")

RESUME_HARMLESS: Mapping[str, Harmless] = {
    "accelerator_config": _BATCHES,
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _FULL_EVAL),
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_persistent_workers"), _BATCHES),
    **dict.fromkeys(("dataloader_pin_memory", "dataloader_prefetch_factor"), _BATCHES),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_static_graph"), _WAITS),
    "debug": Harmless("it ends a run with an error, or does nothing"),
    **dict.fromkeys(("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node"), _SHOWN),
    **dict.fromkeys(("logging_first_step", "logging_strategy", "skip_memory_metrics"), _SHOWN),
    **dict.fromkeys(("project", "run_name"), _SHOWN),
    **dict.fromkeys(("trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"), _SHOWN),
    **dict.fromkeys(("eval_delay", "eval_on_start", "greater_is_better", "metric_for_best_model"), EVALUATES),
    "torch_empty_cache_steps": Harmless("it returns memory that nothing uses"),
    "use_cpu": Harmless("a run may resume on another device or machine, whose numbers differ in the last bits"),
}
"""Field of `PASSED_ON` -> why its change changes no weight; a resume refuses the change of any other."""

_NO_PREDICTIONS = "an evaluation sums up its metrics batch by batch and keeps no predictions"
_NO_PADDING = "sequences are never padded, so that there is nothing to gain"
_LIGER = "Liger's kernels are not loaded: ft's own head never makes the logits in full, either"
_DISTRIBUTED = "one process trains the whole model on one device today; several devices are not built yet"

ANSWERED: Mapping[str, ForeignOption] = {
    "average_tokens_across_devices": ForeignOption(
        "the loss is the mean over the labels of all devices, so that it does not depend on how many there are",
        harmless=(True,),
    ),
    "batch_eval_metrics": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "dataloader_in_order": ForeignOption(
        "batches come in the order that seed and epoch decide, which a resume depends on", harmless=(True,)
    ),
    "deepspeed": ForeignOption(_DISTRIBUTED, harmless=("", {})),
    "enable_jit_checkpoint": ForeignOption("SIGTERM and Ctrl-C always write a checkpoint", harmless=None),
    "eval_accumulation_steps": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "eval_do_concat_batches": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "eval_use_gather_object": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "fsdp": ForeignOption(_DISTRIBUTED, harmless=("", [], False)),
    "fsdp_config": ForeignOption(_DISTRIBUTED, harmless=("", {})),
    "generation_config": ForeignOption(
        "answers are made by the file's own options alone: write the values of that file as do_sample, temperature, "
        "top_p, top_k, num_beams, max_new_tokens, repetition_penalty and length_penalty",
    ),
    "ignore_data_skip": ForeignOption(
        "a resume knows where the run was and reads nothing again, so that it starts as fast either way", harmless=None
    ),
    "include_for_metrics": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "include_num_input_tokens_seen": ForeignOption("tokens are always counted; there is no padding", harmless=None),
    "label_names": ForeignOption(
        "the labels of a language model are the tokens of its text, and ft makes them", harmless=(["labels"], [])
    ),
    "length_column_name": ForeignOption("ft counts the tokens of each row itself", harmless=None),
    "liger_kernel_config": ForeignOption(_LIGER, harmless=None),
    "local_rank": ForeignOption("torchrun says it in the environment variable LOCAL_RANK", harmless=(-1, 0)),
    "logging_nan_inf_filter": ForeignOption(
        "a loss that is not a number stops the run or is skipped, as on_nonfinite says, and is in no mean",
        harmless=None,
    ),
    "parallelism_config": ForeignOption(_DISTRIBUTED, harmless=("",)),
    "prediction_loss_only": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "remove_unused_columns": ForeignOption(
        "columns are read by their role, and no other one reaches the model", harmless=None
    ),
    "restore_callback_states_from_checkpoint": ForeignOption("a resume always restores them", harmless=None),
    "save_on_each_node": ForeignOption(
        "the first process writes the run's files, and the others read them in the output_dir that all share",
        harmless=(False,),
    ),
    "sortish_sampler": ForeignOption(_NO_PADDING, harmless=None),
    "train_sampling_strategy": ForeignOption(
        f"{_NO_PADDING}; tokens_per_batch makes batches of like size",
        harmless=("random", "group_by_length"),
        means={"sequential": ("disable_shuffling", True)},
    ),
    "use_cache": ForeignOption(
        "training keeps no keys and values, and the saved config says what the model's own says", harmless=None
    ),
    "use_liger_kernel": ForeignOption(_LIGER, harmless=None),
}
"""Field -> what ft does instead, the values at which nothing is lost by it, and why others are refused."""
