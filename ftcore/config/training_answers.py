"""The fields of TrainingArguments that are not options of ft's own: passed on, answered, or refused.

Each field is in one of three places: an option of a group or component, which ft obeys; `PASSED_ON`; or `ANSWERED`. A
test checks all fields of the installed transformers.
"""

from __future__ import annotations

from collections.abc import Mapping

from ftcore.api.components import ForeignOption, Harmless
from ftcore.api.option_groups import EVALUATES

_TRACKER = "the tracker's callback in transformers"
_FLOW = "transformers' DefaultFlowCallback"
_BEST = "ft's evaluations and checkpoints"
_LOADER = "the data loader"
_DDP = "accelerate, if several processes train"
_VERBOSITY = "transformers, for its own messages"

PASSED_ON: Mapping[str, str] = {
    "accelerator_config": "the plan: ft makes the batches itself; values that would change them are refused",
    "bf16_full_eval": "the plan: an evaluation uses the precision of training, so both must be the same",
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
    "disable_tqdm": "ft's progress bar, which is shown on a terminal unless this is true",
    "eval_delay": _FLOW,
    "eval_on_start": "ft's training loop",
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
    "neftune_noise_alpha": "ft's noise, the same as transformers' on sequences without padding",
    "project": _TRACKER,
    "run_name": _TRACKER,
    "skip_memory_metrics": "transformers' TrainerMemoryTracker",
    "tf32": "torch, by TrainingArguments",
    "torch_empty_cache_steps": "ft's training loop",
    "trackio_bucket_id": _TRACKER,
    "trackio_space_id": _TRACKER,
    "trackio_static_space_id": _TRACKER,
    "use_cpu": "the plan (precision, memory) and TrainingArguments",
}
"""Field -> the code that reads it."""

_BATCHES = Harmless("ft makes the batches itself, and they stay the same")
_SHOWN = Harmless("it only affects output and logs")
_WAITS = Harmless("it affects how processes find the gradients to exchange, not the gradients")
_FULL_EVAL = Harmless("an evaluation uses the dtype of training, or the plan is refused")

RESUME_HARMLESS: Mapping[str, Harmless] = {
    "accelerator_config": _BATCHES,
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), _FULL_EVAL),
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_persistent_workers"), _BATCHES),
    **dict.fromkeys(("dataloader_pin_memory", "dataloader_prefetch_factor"), _BATCHES),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_static_graph"), _WAITS),
    "debug": Harmless("it ends a run with an error or has no effect"),
    **dict.fromkeys(("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node"), _SHOWN),
    **dict.fromkeys(("logging_first_step", "logging_strategy", "skip_memory_metrics"), _SHOWN),
    **dict.fromkeys(("project", "run_name"), _SHOWN),
    **dict.fromkeys(("trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"), _SHOWN),
    **dict.fromkeys(("eval_delay", "eval_on_start", "greater_is_better", "metric_for_best_model"), EVALUATES),
    "torch_empty_cache_steps": Harmless("it only returns unused memory"),
    "use_cpu": Harmless("a run may resume on another device or machine, where results differ in the last bits"),
}
"""Field of `PASSED_ON` -> why a change of it changes no weight. A resume refuses a change of any other field."""

_NO_PREDICTIONS = "an evaluation sums its metrics batch by batch and keeps no predictions"
_NO_PADDING = "sequences are never padded, so this would save nothing"
_LIGER = "Liger's kernels are not used: ft's own head does not compute full logits either"
_DISTRIBUTED = "one process trains the whole model on one device; training on several devices is not implemented yet"

ANSWERED: Mapping[str, ForeignOption] = {
    "average_tokens_across_devices": ForeignOption(
        "the loss is the mean over the labels of all devices, so it does not depend on their number",
        harmless=(True,),
    ),
    "batch_eval_metrics": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "dataloader_in_order": ForeignOption(
        "batches come in the order that seed and epoch determine, which a resume relies on", harmless=(True,)
    ),
    "deepspeed": ForeignOption(_DISTRIBUTED, harmless=("", {})),
    "enable_jit_checkpoint": ForeignOption("SIGTERM and Ctrl-C always write a checkpoint", harmless=None),
    "eval_accumulation_steps": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "eval_do_concat_batches": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "eval_use_gather_object": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "fsdp": ForeignOption(_DISTRIBUTED, harmless=("", [], False)),
    "fsdp_config": ForeignOption(_DISTRIBUTED, harmless=("", {})),
    "generation_config": ForeignOption(
        "answers use the options of the training file only: write the values of that file as do_sample, temperature, "
        "top_p, top_k, num_beams, max_new_tokens, repetition_penalty and length_penalty",
    ),
    "ignore_data_skip": ForeignOption(
        "a resume starts at the saved position without reading earlier data, so there is nothing to skip", harmless=None
    ),
    "include_for_metrics": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "include_num_input_tokens_seen": ForeignOption("tokens are always counted; there is no padding", harmless=None),
    "label_names": ForeignOption(
        "the labels of a language model are the tokens of its text; ft computes them", harmless=(["labels"], [])
    ),
    "length_column_name": ForeignOption("ft counts the tokens of each row itself", harmless=None),
    "liger_kernel_config": ForeignOption(_LIGER, harmless=None),
    "local_rank": ForeignOption("torchrun sets it in the environment variable LOCAL_RANK", harmless=(-1, 0)),
    "logging_nan_inf_filter": ForeignOption(
        "a non-finite loss stops the run or is skipped, as on_nonfinite says, and is excluded from means",
        harmless=None,
    ),
    "parallelism_config": ForeignOption(_DISTRIBUTED, harmless=("",)),
    "prediction_loss_only": ForeignOption(_NO_PREDICTIONS, harmless=None),
    "remove_unused_columns": ForeignOption(
        "columns are read by their role, and no other column reaches the model", harmless=None
    ),
    "restore_callback_states_from_checkpoint": ForeignOption("a resume always restores them", harmless=None),
    "save_on_each_node": ForeignOption(
        "the first process writes the run's files to the output_dir, which all processes share",
        harmless=(False,),
    ),
    "sortish_sampler": ForeignOption(_NO_PADDING, harmless=None),
    "train_sampling_strategy": ForeignOption(
        f"{_NO_PADDING}; tokens_per_batch makes batches of similar size",
        harmless=("random", "group_by_length"),
        means={"sequential": ("disable_shuffling", True)},
    ),
    "use_cache": ForeignOption(
        "training keeps no key-value cache, and the saved config keeps the model's own value", harmless=None
    ),
    "use_liger_kernel": ForeignOption(_LIGER, harmless=None),
}
"""Field -> what ft does instead, the values that are accepted, and why others are refused."""
