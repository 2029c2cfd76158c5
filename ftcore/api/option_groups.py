"""The core's own options, under the names of LLaMA-Factory.

The options of a component are defined with the component. Fields of ``transformers.TrainingArguments`` that are not
listed here are accepted too (`ftcore.config.hf_training_arguments`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ftcore.api.component import EVERY, Harmless, OptionGroup, learns_from_answers
from ftcore.resources.compilers import INDUCTOR


def _names(value: Any) -> Any:
    """``a,b`` and ``[a, b]`` are the same list of names."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _mapping(value: Any) -> Any:
    """Accepts a mapping, or its JSON text from the command line."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise PydanticCustomError("mapping", "write a mapping, or a JSON object") from None
    return value


def _tokens_per_pass(value: Any) -> Any:
    """Keeps 0 apart from false and 1 from true, which pydantic would convert."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number == "auto" or number is False or (type(number) is int and number >= 1):
        return number
    raise PydanticCustomError("tokens_per_pass", "write auto, a number of tokens (1 or more), or false")


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Probabilities = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_names)]


SCHEDULES_BY_METRIC = frozenset({"reduce_lr_on_plateau", "greedy"})
"""Values of ``lr_scheduler_type`` whose learning rate depends on an evaluation metric."""


def loads_best(plan: Any) -> bool:
    """Whether the run ends with the weights of its best checkpoint."""
    return bool(plan.transformers.get("load_best_model_at_end"))


def evaluations_decide(plan: Any) -> bool:
    """Whether evaluations affect the weights: through early stopping, the best checkpoint or the learning rate."""
    training = plan.training
    by_metric = training.lr_scheduler_type in SCHEDULES_BY_METRIC
    return by_metric or training.early_stopping_steps is not None or loads_best(plan)


def batches_decide(plan: Any) -> bool:
    """Whether the evaluation batch size affects the weights."""
    return evaluations_decide(plan) or learns_from_answers(plan)


EVALUATES = Harmless("an evaluation draws no random number and trains nothing", unless=evaluations_decide)
SAVES = Harmless("writing a checkpoint draws no random number and changes no weight", unless=loads_best)
_ROWS = Harmless("the resulting rows are compared, or for a stream everything that determines them")
_ANSWERS = Harmless("answers are generated after training only", unless=learns_from_answers)
_DTYPES = Harmless("the resulting dtypes are compared")
_COMPILER = Harmless("the resulting compiler is compared")
_PLACES = Harmless("it says where files are, not what is in them")
_LOGS = Harmless("it only affects output and logs")
_ENDS = Harmless("it decides whether a run ends with an error, not what a step computes")
_AFTER = Harmless("it only affects work after training")
_RECOMPUTES = Harmless("recomputed activations are identical to the bit, dropout included")
_LOADS = Harmless("it changes when and by which process rows are read, not the rows")


class ModelOptions(OptionGroup):
    """The model, and how it is loaded."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {
        "use_fast_tokenizer": Harmless("true is its only value"),
        "low_cpu_mem_usage": Harmless("it has no effect"),
        "cache_dir": _PLACES,
        "infer_dtype": _ANSWERS,
    }

    model_name_or_path: str | None = None
    """Hub id, local folder, or a name that an installed plugin offers (``ft plugins list --kind model_family``)."""
    adapter_name_or_path: Names = ()
    """LoRA adapters, comma separated. Training merges them in order, all but the last, which stays trainable. Inference
    uses them all."""
    model_revision: str = "main"
    """Branch, tag or commit on the hub."""
    cache_dir: str | None = None
    """Folder for hub downloads; unset, the hub library's own cache."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may run. Read it first."""
    use_fast_tokenizer: Literal[True] = True
    """Always true: loss masks are computed from offsets, which only fast tokenizers give."""
    low_cpu_mem_usage: bool = True
    """Accepted, without effect: transformers 5 always loads this way."""
    hf_hub_token: str | None = Field(None, repr=False)
    """Token for gated models; the environment variable ``HF_TOKEN`` is safer. Never written to logs or manifests."""
    bos_token: str | None = None
    """Begin-of-sequence token instead of the tokenizer's own. It must be in the vocabulary, as must the next two."""
    eos_token: str | None = None
    """End-of-sequence token instead of the tokenizer's own."""
    pad_token: str | None = None
    """Padding token instead of the tokenizer's own."""
    add_tokens: Names = ()
    """Ordinary tokens to add to the vocabulary. New rows of embedding and head start at the mean of the existing rows
    plus a little noise. lora then trains both matrices in full."""
    add_special_tokens: Names = ()
    """Special tokens to add to the vocabulary. Users' text is never tokenised to them, and answers leave them out."""
    resize_vocab: bool = False
    """Add rows to embedding and head if the tokenizer has more tokens than they have rows."""
    infer_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights for inference; ``auto`` is bfloat16 if the hardware supports it, else float32."""

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The options that add tokens to the model, as far as they are set."""
        names = ("add_tokens", "add_special_tokens", "resize_vocab")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def grows_vocabulary(self) -> bool:
        """Whether the model may get new tokens."""
        return bool(self.vocabulary)


class DataOptions(OptionGroup):
    """The data, and how it is tokenised."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {
        **dict.fromkeys(("dataset", "dataset_dir", "media_dir", "max_samples", "val_size", "cutoff_len"), _ROWS),
        **dict.fromkeys(("streaming", "buffer_size", "mix_strategy", "interleave_probs"), _ROWS),
        **dict.fromkeys(("packing", "neat_packing", "packing_split"), _ROWS),
        **dict.fromkeys(("train_on_prompt", "mask_history"), _ROWS),
        **dict.fromkeys(("default_system", "enable_thinking", "preserve_thinking"), _ROWS),
        **dict.fromkeys(("on_bad_row", "max_row_bytes"), _ROWS),
        **dict.fromkeys(("max_bad_rows", "template_check"), _ENDS),
        **dict.fromkeys(("overwrite_cache", "tokenized_path"), _PLACES),
        **dict.fromkeys(("preprocessing_num_workers", "preprocessing_batch_size"), _LOADS),
        "eval_dataset": EVALUATES,
    }

    dataset: Names = ()
    """Names in ``dataset_info.json``, or files or folders, comma separated."""
    eval_dataset: Names = ()
    """The same, for evaluation."""
    dataset_dir: str = "data"
    """Folder of ``dataset_info.json`` and of the files that it names."""
    cutoff_len: Annotated[int, Field(ge=2)] = 2048
    """Longest sequence, in tokens."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Maximum rows of each dataset: the first ones, or with ``num_samples`` the first ones drawn."""
    val_size: Annotated[float, Field(ge=0)] = 0.0
    """Share (below 1) or number of rows split off for evaluation."""
    streaming: bool = False
    """Read and tokenise rows during training, for data larger than memory and disk. Needs ``max_steps``. When the data
    ends, it is read again. ``val_size`` takes the first rows."""
    buffer_size: Annotated[int, Field(ge=1)] = 16384
    """With ``streaming``: size of the shuffle buffer, in rows."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = "concat"
    """How several datasets are combined. ``concat``: one after the other. The others take rows in turn, by
    ``interleave_probs`` if set. ``interleave_under``: until the first dataset is used up. ``interleave_over``: until
    each has been used up once; smaller ones repeat. ``interleave_once``: until every row was taken once. Evaluation
    data is always used in full."""
    interleave_probs: Probabilities | None = None
    """With an interleave strategy: probability of each dataset, in order. They sum to 1."""
    packing: bool | None = None
    """Whether to pack several rows into one sequence of at most ``cutoff_len`` tokens. Rows of a pack do not attend to
    each other, and the same tokens are trained. The batch size then counts packs. Unset: the stage's default."""
    neat_packing: bool = False
    """The same as ``packing: true``: rows of a pack never attend to each other."""
    packing_split: bool | None = None
    """Whether packed raw texts continue in the next pack when one is full (unset: they do). false keeps each text in
    one pack, cut at ``cutoff_len``."""
    train_on_prompt: bool = False
    """Whether the loss also covers the prompt: everything that the model reads."""
    mask_history: bool = False
    """Whether only the last answer of a conversation counts in the loss."""
    default_system: str | None = None
    """System message for conversations without one. Unset: the template's own; empty: none."""
    enable_thinking: bool | None = None
    """Passed to the template: whether the model thinks before it answers. Unset: the template's default. With ``false``
    thoughts are left out of every answer, in a field or in tags: they are neither trained nor shown."""
    preserve_thinking: bool | None = None
    """Passed to the template: whether thoughts of earlier turns stay. Unset: the template's default (mostly not)."""
    template_check: Literal["error", "warn", "off"] = "warn"
    """What to do if the template does not fit the tokenizer, or differs from the tokenizer's own."""
    media_dir: str | None = None
    """Folder of images and videos. Files that it does not hold, or all if unset, are looked up in ``dataset_dir``."""
    on_bad_row: Literal["fail", "skip", "quarantine"] = "fail"
    """``fail`` reports every bad row and stops. ``skip`` leaves bad rows out and counts them. ``quarantine`` also
    writes them, each with the reason, to ``quarantine.jsonl`` in ``output_dir``."""
    max_bad_rows: Annotated[float, Field(ge=0)] | None = None
    """Maximum number, or (below 1) share, of bad rows in each dataset; more are an error."""
    max_row_bytes: Annotated[int, Field(ge=1)] = 1 << 24
    """Maximum bytes of a row: of its line in a text file, of its texts in a columnar file. A larger row is a bad row.
    Tokenising needs up to 150 bytes of memory per byte, whatever ``cutoff_len`` is."""
    overwrite_cache: bool = False
    """Tokenise again instead of reading cached tokens. A change of data, template or tokenizer never needs this: all
    three are part of the cache key."""
    tokenized_path: str | None = None
    """Folder for the tokens, instead of the cache. Tokens found there are used if they fit this run, else the run is
    refused."""
    preprocessing_num_workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that tokenise, from a few thousand rows on; unset, one per core."""
    preprocessing_batch_size: Annotated[int, Field(ge=1)] = 1000
    """Rows tokenised at a time."""
    disable_shuffling: bool = False
    """Keep the order of the rows in training."""


class TrainingOptions(OptionGroup):
    """How the run trains, evaluates, logs and saves."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {
        "do_train": Harmless("only a run that trains resumes"),
        **dict.fromkeys(("do_eval", "do_predict"), _AFTER),
        **dict.fromkeys(("output_dir", "overwrite_output_dir", "resume_from_checkpoint"), _PLACES),
        "use_file_locking": Harmless("locks affect other processes only"),
        **dict.fromkeys(("eval_strategy", "eval_steps"), EVALUATES),
        "logging_steps": Harmless("it affects the log and the steps of evaluations only", unless=evaluations_decide),
        "per_device_eval_batch_size": Harmless("an evaluation trains nothing", unless=batches_decide),
        **dict.fromkeys(("save_strategy", "save_steps"), SAVES),
        "save_total_limit": Harmless("the best checkpoint and the last one are kept, whatever it is"),
        "save_only_model": Harmless("only checkpoints that hold more are resumed from"),
        **dict.fromkeys(("on_nonfinite", "max_skipped_steps", "ddp_timeout"), _ENDS),
        **dict.fromkeys(("bf16", "fp16", "pure_bf16", "strict_precision"), _DTYPES),
        **dict.fromkeys(("disable_gradient_checkpointing", "gradient_checkpointing"), _RECOMPUTES),
        "gradient_checkpointing_kwargs": _RECOMPUTES,
        "auto_find_batch_size": Harmless("it has no effect"),
        **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILER),
        "cache_frozen_prefix": Harmless("only false is compared; a resume continues with the checkpoint's way"),
        "frozen_prefix_size": Harmless("a resume continues with the checkpoint's way"),
        **dict.fromkeys(("logging_dir", "plot_loss", "report_to"), _LOGS),
        "dataloader_num_workers": _LOADS,
    }

    do_train: bool = False
    """Whether to train; without it the run only evaluates."""
    do_eval: bool = False
    """Whether to evaluate at the end; implied by ``eval_strategy``."""
    do_predict: bool = False
    """Whether to predict on the evaluation data at the end, as the stage does it (sft: ``predict_with_generate``)."""
    output_dir: str | None = None
    """Folder for the run's files; unset, ``saves/<model>/<method>/<stage>``."""
    overwrite_output_dir: bool = False
    """Start anew in a folder that holds an earlier run's files. Only files that ft wrote are deleted or replaced, its
    checkpoints once the new run has a complete one. Other files are listed and stay."""
    use_file_locking: bool = True
    """Whether to lock ``output_dir``, caches and ``--output`` while writing. Write false for file systems without
    locks. You then have to make sure that no two processes write there."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows per device and batch."""
    tokens_per_batch: Annotated[int, Field(ge=1)] | None = None
    """Maximum tokens per device and batch, instead of a number of rows. A batch takes rows in the same random order
    while they fit; a longer row is a batch of its own. All epochs have the same number of steps. The prompt of a pair
    counts once for each answer."""
    tokens_per_pass: Annotated[int | Literal["auto", False], BeforeValidator(_tokens_per_pass)] = "auto"
    """Maximum tokens per forward pass. A larger batch is split into micro-batches whose gradients are added up: less
    memory, the same training. A CPU with several threads computes two halves side by side. ``auto``: 2048 on a CPU,
    whole batches elsewhere; false: whole batches."""
    share_prompt: bool | Literal["auto"] = "auto"
    """Whether a common prefix of rows or answers in a batch is computed once, such as a system prompt or the prompt of
    a pair. ``auto``: if the result is the same and the lengths say that it saves time. true: always, and an error if
    the result would differ. false: never."""
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows per device when evaluating."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are accumulated for one optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-5
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """Number of passes over the data."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Stop after this many optimizer steps; with -1 ``num_train_epochs`` decides."""
    lr_scheduler_type: str = "linear"
    """linear, cosine, cosine_with_restarts, constant, constant_with_warmup, or another schedule of transformers."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps that are warmup, in which the learning rate rises."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Number of warmup steps; above 0 it takes precedence over ``warmup_ratio``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on weight matrices only."""
    label_smoothing_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each label's weight that is spread evenly over the vocabulary, in stages that learn tokens (pt, sft). It
    applies to the evaluation loss too, as in transformers."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do on a non-finite loss, gradient or learning rate: ``stop`` ends the run, ``skip`` skips the step. The
    optimizer never takes such a step."""
    max_skipped_steps: Annotated[int, Field(ge=1)] = 10
    """With ``on_nonfinite: skip``: steps that may be skipped; one more ends the run."""
    early_stopping_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many consecutive evaluations without a better ``metric_for_best_model`` (unset, ``loss``)."""
    bf16: bool | None = None
    """bfloat16. true: if the hardware supports it, else float32 and a warning. false: never. unset: if the hardware is
    fast with it."""
    fp16: bool = False
    """float16 mixed precision, on CUDA only."""
    pure_bf16: bool = False
    """Keep trained parameters in bfloat16 instead of float32. This halves their memory and loses relative updates below
    1/256."""
    strict_precision: bool = False
    """Whether it is an error if the hardware does not support the precision that the file asks for."""
    seed: int = 42
    """Seed of all random numbers."""
    ddp_timeout: Annotated[int, Field(gt=0)] = 1800
    """Seconds that processes wait for each other."""
    disable_gradient_checkpointing: bool | None = None
    """true: activations are kept. false: they are recomputed. unset: they are recomputed only if the memory estimate
    requires it."""
    gradient_checkpointing: bool | None = None
    """The opposite of ``disable_gradient_checkpointing``: true recomputes activations, false keeps them."""
    gradient_checkpointing_kwargs: Annotated[dict[str, Any], BeforeValidator(_mapping)] | None = None
    """Arguments of ``torch.utils.checkpoint`` for recomputed activations: ``determinism_check``, ``debug``,
    ``early_stop``. Checkpointing is never reentrant, whatever ``use_reentrant`` says; the result is the same."""
    auto_find_batch_size: bool = False
    """Accepted; ft always does this: when memory runs out, the batch is split into passes of half as many rows. The
    optimizer still steps on the same global batch. Refused where a batch cannot be split: with several processes, or
    with losses that compare rows."""
    torch_compile: bool | None = None
    """Compile the decoder's layers for training: faster steps in half precision, after some seconds of compilation.
    Layers in float32 on a CPU are not compiled: ft's own are faster. Unset: true if one of the next two options is
    set."""
    torch_compile_backend: str | None = None
    """Backend of torch's compiler: inductor (unset) or another installed one."""
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        None
    )
    """Mode of the backend inductor: how long it searches for faster kernels, and whether it uses CUDA graphs."""
    cache_frozen_prefix: bool | Literal["auto"] = "auto"
    """Whether to cache the inputs of the first trainable layer on disk, so that the frozen layers below are computed
    once. ``auto``: on a CPU, if the run has several epochs and there is room. true: a run that cannot do this is
    refused. false: never."""
    frozen_prefix_size: Annotated[float, Field(gt=0)] = 20.0
    """Maximum size of this cache, for all runs together, in GB. The least recently used entries are removed first."""
    logging_dir: str | None = None
    """With ``report_to: tensorboard``: the folder for its files; unset, ``TENSORBOARD_LOGGING_DIR``, else a folder in
    ``output_dir/runs``."""
    logging_steps: Annotated[float, Field(gt=0)] = 10
    """Steps between log lines (below 1, a share of all steps)."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When checkpoints are written."""
    save_steps: Annotated[float, Field(gt=0)] = 500
    """Steps between checkpoints (below 1, a share of all steps)."""
    save_total_limit: Annotated[int, Field(ge=1)] | None = None
    """Number of checkpoints to keep; the best one and the last complete one are always kept."""
    save_only_model: bool = False
    """Write checkpoints without optimizer and random state. You cannot resume from them."""
    resume_from_checkpoint: bool | str | None = None
    """``auto`` (also true, and unset): the last complete checkpoint in ``output_dir``, if any. A path: that checkpoint.
    ``never`` (also false): start anew."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate during training."""
    eval_steps: Annotated[float, Field(gt=0)] | None = None
    """Steps between evaluations; unset, ``logging_steps``."""
    plot_loss: bool = False
    """Draw ``training_loss.png``, and with evaluations ``training_eval_loss.png``."""
    report_to: Names = ("none",)
    """Experiment trackers: none, tensorboard, wandb, mlflow, swanlab, trackio."""
    dataloader_drop_last: bool = False
    """Drop the rows of an epoch that do not fill a batch. With shuffling these differ from epoch to epoch."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load batches; 0 loads them in the run's own process."""

    @property
    def recomputes(self) -> bool | None:
        """Whether activations are recomputed; None if the memory estimate decides."""
        if self.disable_gradient_checkpointing is not None:
            return not self.disable_gradient_checkpointing
        return self.gradient_checkpointing

    @property
    def compiler(self) -> tuple[str, str | None] | None:
        """Backend and mode of torch's compiler; None if layers are not compiled."""
        configured = self.torch_compile_backend is not None or self.torch_compile_mode is not None
        compiles = configured if self.torch_compile is None else self.torch_compile
        return (self.torch_compile_backend or INDUCTOR, self.torch_compile_mode) if compiles else None

    def pass_tokens(self, auto: int | None) -> int | None:
        """Maximum tokens per forward pass; None for whole batches.

        Args:
            auto: the maximum with ``tokens_per_pass: auto`` (`ftcore.resources.device_traits.DeviceTraits`).
        """
        if self.tokens_per_pass == "auto":
            return auto
        return self.tokens_per_pass or None


LARGEST = 2**31 - 1
LEAST_TEMPERATURE = 1e-20


def _temperature(value: float) -> float:
    # float32 ends at 3e38: a logit after a penalty of 0.01, divided by a smaller temperature, may be infinite
    if 0 < value < LEAST_TEMPERATURE:
        reason = f"must be 0, which takes the likeliest token, or at least {LEAST_TEMPERATURE:g}"
        raise PydanticCustomError("temperature", reason)
    return value


Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_temperature)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]


class HubOptions(OptionGroup):
    """Uploads of the trained model."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("uploads read what was saved")}

    push_to_hub: bool = False
    """Upload the trained model to a repository on the Hugging Face hub, during the run and at its end."""
    hub_model_id: str | None = None
    """Repository: ``owner/name``, or a name in your own namespace; unset, the last part of ``output_dir``. It is
    created if it does not exist."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save"
    """``end``: upload only at the end. ``every_save``: also the weights of each checkpoint. ``checkpoint``: also the
    whole checkpoint as ``last-checkpoint``, to resume elsewhere. ``all_checkpoints``: each checkpoint under its own
    name."""
    hub_token: str | None = Field(default=None, repr=False)
    """Token with write access; unset, the one of ``HF_TOKEN`` or ``hf auth login``. Never written to logs or
    manifests."""
    hub_private_repo: bool | None = None
    """Whether a new repository is private; unset, the owner's default."""
    hub_always_push: bool = False
    """Upload a checkpoint even while the previous one is uploading. Otherwise it is skipped; the upload at the end
    never is."""
    hub_revision: str | None = None
    """Branch to upload to, created if it does not exist; unset, the main branch."""


class GenerationOptions(OptionGroup):
    """How answers are sampled."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: _ANSWERS}

    do_sample: bool = True
    """Sample from the distribution; false always takes the likeliest token."""
    temperature: Temperature = 0.7
    """Randomness: below 1 sharper, above 1 flatter; 0 is the same as ``do_sample: false``."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sample from the likeliest tokens whose probabilities add up to this."""
    top_k: Annotated[int, Field(ge=0, le=LARGEST)] = 50
    """Sample from this many likeliest tokens; 0 for all."""
    num_beams: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of beams; above 1, answers do not stream."""
    max_length: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Maximum tokens of prompt and answer together; ``max_new_tokens`` takes precedence."""
    max_new_tokens: Annotated[int, Field(ge=1, le=LARGEST)] = 1024
    """Maximum tokens of the answer."""
    repetition_penalty: RepetitionPenalty = 1.0
    """Above 1, tokens that occurred before become less likely."""
    length_penalty: Annotated[float, Field(ge=-20, le=20)] = 1.0
    """With beams: values above 0 favour longer answers."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text that is shown."""


class MediaOptions(OptionGroup):
    """Multimodal models: which parts are trained, and the size of images."""

    freeze_vision_tower: bool = True
    """Freeze the vision encoder."""
    freeze_multi_modal_projector: bool = True
    """Freeze the projector from image features to the language model."""
    freeze_language_model: bool = False
    """Freeze the language model."""
    image_max_pixels: Annotated[int, Field(ge=1)] = 768 * 768
    """Maximum size of an image, width times height; larger ones are scaled down."""
    image_min_pixels: Annotated[int, Field(ge=1)] = 32 * 32
    """Minimum size of an image, width times height."""


class VideoOptions(OptionGroup):
    """Size and length of videos. No run reads videos yet; a plan says so if they are set."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("no run reads videos")}

    video_max_pixels: Annotated[int, Field(ge=1)] = 256 * 256
    """Maximum size of a video frame, width times height."""
    video_min_pixels: Annotated[int, Field(ge=1)] = 16 * 16
    """Minimum size of a video frame, width times height."""
    video_fps: Annotated[float, Field(gt=0)] = 2.0
    """Frames sampled per second."""
    video_maxlen: Annotated[int, Field(ge=1)] = 128
    """Maximum number of frames."""


class ExportOptions(OptionGroup):
    """What ``ft export`` writes; no effect on other commands."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("only ft export reads it")}

    export_dir: str | None = None
    """Folder for the exported model. If it exists, it must hold an earlier export."""
    export_size: Annotated[float, Field(gt=0)] = 5.0
    """Maximum size of a weight file, in GB; larger models are written in shards."""
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the exported weights; ``auto`` is ``infer_dtype`` if set, else the base model's."""
    export_device: Literal["cpu", "auto"] = "cpu"
    """Device on which adapters are merged; ``auto`` is the GPU if there is one."""
    export_legacy_format: bool = False
    """Only false is accepted: weights are written as safetensors, never pickled."""
    export_gguf: Literal["f32", "f16", "q8_0"] | None = None
    """Also write ``model-<type>.gguf``, for llama.cpp and Ollama."""


class ServingOptions(OptionGroup):
    """What ``ft serve`` does; no effect on other commands."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("only ft serve reads it")}

    serve_host: str = "127.0.0.1"
    """Address to listen on; an address that other machines reach needs an API key."""
    serve_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 picks a free one."""
    serve_api_key_file: str | None = None
    """File whose first line is the API key of requests; the environment variable ``FT_API_KEY`` takes precedence."""
    serve_name: str | None = None
    """Name of the model in requests; unset, the last part of its folder or hub id."""
    serve_adapters: dict[str, str] = Field(default_factory=dict)
    """Name -> folder or hub id of adapters that are served with the model, each under its name."""
    serve_batch: Annotated[int, Field(ge=1)] = 8
    """Answers generated at a time."""
    serve_queue: Annotated[int, Field(ge=0)] = 64
    """Answers that may wait in the queue; further requests get status 429."""
    serve_max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Largest ``max_tokens`` of a request. A request without it gets ``max_new_tokens``, or this if it is less."""
    serve_max_body: Annotated[int, Field(ge=1)] = 1 << 20
    """Maximum size of a request, in bytes."""
    serve_max_messages: Annotated[int, Field(ge=1)] | None = None
    """Maximum messages of a request; unset, one for every 2 tokens of the model's context."""
    serve_max_chars: Annotated[int, Field(ge=1)] | None = None
    """Maximum characters of a request's messages and tools; unset, 16 per token of the model's context."""
    serve_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Maximum seconds of a request, waiting included."""
    serve_read_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Maximum seconds to receive the head of a request, and again to receive its body."""
    serve_shutdown: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that running answers have to finish after SIGTERM or Ctrl-C."""


GROUPS: dict[str, type[OptionGroup]] = {
    "model": ModelOptions,
    "data": DataOptions,
    "training": TrainingOptions,
    "hub": HubOptions,
    "generation": GenerationOptions,
    "media": MediaOptions,
    "videos": VideoOptions,
    "export": ExportOptions,
    "serving": ServingOptions,
}
