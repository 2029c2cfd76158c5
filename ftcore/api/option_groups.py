"""The core's own options, in the names that users' files hold (the LLaMA-Factory vocabulary).

Whatever belongs to one component stands beside that component. Fields of ``transformers.TrainingArguments`` that are
not listed here are taken too (`ftcore.config.hf_training_arguments`).
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
    """A mapping may be written as JSON, as on a command line."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            raise PydanticCustomError("mapping", "write a mapping, or one as JSON") from None
    return value


def _tokens_per_pass(value: Any) -> Any:
    """0 is not false, nor true 1, as pydantic would have them."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number == "auto" or number is False or (type(number) is int and number >= 1):
        return number
    raise PydanticCustomError("tokens_per_pass", "write auto, a number of tokens from 1 on, or false")


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
Probabilities = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_names)]


SCHEDULES_BY_METRIC = frozenset({"reduce_lr_on_plateau", "greedy"})
"""Values of ``lr_scheduler_type`` whose learning rate follows the evaluations."""


def loads_best(plan: Any) -> bool:
    """Whether the run ends with the weights of its best checkpoint."""
    return bool(plan.transformers.get("load_best_model_at_end"))


def evaluations_decide(plan: Any) -> bool:
    """Whether evaluations decide the weights: when the run stops, which checkpoint it loads, or the learning rate."""
    training = plan.training
    by_metric = training.lr_scheduler_type in SCHEDULES_BY_METRIC
    return by_metric or training.early_stopping_steps is not None or loads_best(plan)


def batches_decide(plan: Any) -> bool:
    """Whether it decides the weights how many rows are evaluated, or answered, at a time."""
    return evaluations_decide(plan) or learns_from_answers(plan)


EVALUATES = Harmless("an evaluation draws no random number and trains nothing", unless=evaluations_decide)
SAVES = Harmless("a checkpoint draws no random number and changes nothing that it saves", unless=loads_best)
_ROWS = Harmless("the rows that follow from it are compared, or in a stream all that decides them")
_ANSWERS = Harmless("answers are generated after training only", unless=learns_from_answers)
_DTYPES = Harmless("the dtypes that follow from it are compared")
_COMPILER = Harmless("the compiler that follows from it is compared")
_PLACES = Harmless("it says where files are, not what is in them")
_LOGS = Harmless("it changes what is shown or logged only")
_ENDS = Harmless("it decides whether a run ends with an error, not what an earlier or later step computes")
_AFTER = Harmless("it adds work after training, or leaves it out")
_RECOMPUTES = Harmless("activations that are recomputed have the same bits, dropout included")
_LOADS = Harmless("rows are read by other processes or at other times, and are the same")


class ModelOptions(OptionGroup):
    """Which model, and how it is loaded."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {
        "use_fast_tokenizer": Harmless("it has one value"),
        "low_cpu_mem_usage": Harmless("it has no effect"),
        "cache_dir": _PLACES,
        "infer_dtype": _ANSWERS,
    }

    model_name_or_path: str | None = None
    """Hub id, local folder, or a name that an installed plugin offers (``ft plugins list --kind model_family``)."""
    adapter_name_or_path: Names = ()
    """LoRA adapters, comma separated: merged in order, the last one stays trainable; or used to infer with."""
    model_revision: str = "main"
    """Branch, tag or commit on the hub."""
    cache_dir: str | None = None
    """Where hub downloads are kept; unset, the hub library's own cache."""
    trust_remote_code: bool = False
    """Whether code that comes with a model may run. Read it first."""
    use_fast_tokenizer: Literal[True] = True
    """Tokenizers are the fast ones: masks are made from their offsets."""
    low_cpu_mem_usage: bool = True
    """Taken and without effect: transformers 5 always loads in this way."""
    hf_hub_token: str | None = Field(None, repr=False)
    """Token for gated models; better in the environment variable ``HF_TOKEN``. Never written to logs or manifests."""
    bos_token: str | None = None
    """Begin-of-sequence token instead of the tokenizer's own; its vocabulary must hold it, as the next two."""
    eos_token: str | None = None
    """End-of-sequence token instead of the tokenizer's own."""
    pad_token: str | None = None
    """Padding token instead of the tokenizer's own."""
    add_tokens: Names = ()
    """Tokens that the vocabulary is to have as well, ordinary ones. New rows of embedding and head begin with the mean
    of the old ones and a little noise; lora then trains both in full."""
    add_special_tokens: Names = ()
    """The same for special tokens, which users' text never yields and answers leave out."""
    resize_vocab: bool = False
    """Give embedding and head rows for all of the tokenizer's tokens, where it has more than they."""
    infer_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights when generating; ``auto`` is bfloat16 where the hardware has it, float32 where not."""

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The options by which the model gets new tokens, those that are set."""
        names = ("add_tokens", "add_special_tokens", "resize_vocab")
        return {name: value for name in names if (value := getattr(self, name))}

    @property
    def grows_vocabulary(self) -> bool:
        """Whether the model may get new tokens."""
        return bool(self.vocabulary)


class DataOptions(OptionGroup):
    """Which data, and how it becomes tokens."""

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
    """The same for evaluation."""
    dataset_dir: str = "data"
    """Folder of ``dataset_info.json`` and the files that it names."""
    cutoff_len: Annotated[int, Field(ge=2)] = 2048
    """Longest sequence, in tokens."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """At most so many rows of each dataset, the first ones; of a dataset with ``num_samples`` the first that are
    drawn."""
    val_size: Annotated[float, Field(ge=0)] = 0.0
    """Share (below 1) or number of rows split off for evaluation."""
    streaming: bool = False
    """Whether rows are read and tokenised while they are trained on, for data larger than memory and disk; needs
    ``max_steps``. One pass over the data follows the other; ``val_size`` takes the first rows."""
    buffer_size: Annotated[int, Field(ge=1)] = 16384
    """With ``streaming``: rows that are in memory and shuffled at a time."""
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = "concat"
    """How several datasets become one: one after the other; or rows in turn (by ``interleave_probs``, if set) until the
    first is used up, until each has been used up once (smaller ones begin again), or until every row is taken once.
    Evaluation data is always whole."""
    interleave_probs: Probabilities | None = None
    """With an interleave strategy: the probability of each dataset, in their order; they sum to 1."""
    packing: bool | None = None
    """Whether several rows share an item of at most ``cutoff_len`` tokens, each seeing only itself; a batch is then so
    many packs. The same tokens are trained. Unset, what the stage does by itself."""
    neat_packing: bool = False
    """The same as ``packing: true``: rows in a pack are always isolated here."""
    packing_split: bool | None = None
    """Whether raw texts, when packed, go on in the next pack where one is full (so do unset); false keeps each in one,
    cut at ``cutoff_len``."""
    train_on_prompt: bool = False
    """Whether the loss also covers what the model reads."""
    mask_history: bool = False
    """Whether only the last answer of a conversation is trained."""
    default_system: str | None = None
    """System message for conversations that have none; unset, the template's own; empty, none."""
    enable_thinking: bool | None = None
    """Passed to the template: whether the model thinks before it answers; unset, the template's own default. With
    ``false`` no thought is trained or shown: it is left out of every answer, be it a field or a text in tags."""
    preserve_thinking: bool | None = None
    """Passed to the template: whether thoughts of earlier turns stay; unset, the template's own way (mostly not)."""
    template_check: Literal["error", "warn", "off"] = "warn"
    """What is done when the template and the tokenizer do not go together, or its own template differs."""
    media_dir: str | None = None
    """Folder of images and videos; what it does not hold, and unset, ``dataset_dir``."""
    on_bad_row: Literal["fail", "skip", "quarantine"] = "fail"
    """``fail`` names every bad row and stops; ``skip`` leaves them out and counts them; ``quarantine`` does that too
    and writes them, with what is wrong, to ``quarantine.jsonl`` in ``output_dir``."""
    max_bad_rows: Annotated[float, Field(ge=0)] | None = None
    """At most so many bad rows, or (below 1) such a share, in each dataset; more are an error after all."""
    max_row_bytes: Annotated[int, Field(ge=1)] = 1 << 24
    """Largest row, in bytes as it stands in a text file, in bytes of its texts in a columnar one; a larger one is a bad
    row. Tokenising takes up to 150 bytes of memory for each, whatever ``cutoff_len`` is."""
    overwrite_cache: bool = False
    """Whether tokens kept from an earlier run are made anew. They are found by content: a change of data, template or
    tokenizer never needs this."""
    tokenized_path: str | None = None
    """Folder to keep the tokens in instead of the cache; what it holds is used if it fits this run, else refused."""
    preprocessing_num_workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that tokenise, from a few thousand rows on; unset, one per core."""
    preprocessing_batch_size: Annotated[int, Field(ge=1)] = 1000
    """Rows that are tokenised at a time."""
    disable_shuffling: bool = False
    """Whether rows keep their order in training."""


class TrainingOptions(OptionGroup):
    """How the run trains, evaluates, logs and saves."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {
        "do_train": Harmless("only a run that trains resumes"),
        **dict.fromkeys(("do_eval", "do_predict"), _AFTER),
        **dict.fromkeys(("output_dir", "overwrite_output_dir", "resume_from_checkpoint"), _PLACES),
        "use_file_locking": Harmless("it is about other processes"),
        **dict.fromkeys(("eval_strategy", "eval_steps"), EVALUATES),
        "logging_steps": Harmless("it changes what is logged, and when to evaluate", unless=evaluations_decide),
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
        "cache_frozen_prefix": Harmless("whether it is false is compared; a resume goes on as the checkpoint was made"),
        "frozen_prefix_size": Harmless("a resume goes on as the checkpoint was made"),
        **dict.fromkeys(("logging_dir", "plot_loss", "report_to"), _LOGS),
        "dataloader_num_workers": _LOADS,
    }

    do_train: bool = False
    """Whether to train; without it the run only evaluates."""
    do_eval: bool = False
    """Whether to evaluate at the end; implied by ``eval_strategy``."""
    do_predict: bool = False
    """Whether to predict the evaluation data at the end, as the stage does it (sft: ``predict_with_generate``)."""
    output_dir: str | None = None
    """Where the run's files go; unset, ``saves/<model>/<method>/<stage>``."""
    overwrite_output_dir: bool = False
    """Start anew where an earlier run's files stand. Only files that ft wrote are deleted or replaced, its checkpoints
    once the new run has a whole one; everything else is named and stays."""
    use_file_locking: bool = True
    """Whether ``output_dir``, caches and ``--output`` are locked while they are written. false is for file systems that
    have no locks; it is then for you to see that no two processes write there."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows per device and step."""
    tokens_per_batch: Annotated[int, Field(ge=1)] | None = None
    """Tokens per device and step, at most, instead of rows: as many rows as fit, in the same random order; a longer row
    is a batch of its own. All epochs take the same number of steps. Prompts of pairs count once for each answer."""
    tokens_per_pass: Annotated[int | Literal["auto", False], BeforeValidator(_tokens_per_pass)] = "auto"
    """Tokens that are computed at a time, at most: a batch of more is divided between its rows and the gradients added
    up, which needs less memory and trains the same; on a CPU of several threads in two halves side by side. ``auto``:
    2048 on a CPU, whole batches elsewhere; false: whole."""
    share_prompt: bool | Literal["auto"] = "auto"
    """Whether what several rows or answers of a batch begin with, such as a system prompt or the prompt of a pair, is
    computed once: ``auto``, where that is the same and takes less time, by their lengths; true, always, and an error
    where it is not the same; false, never."""
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows per device when evaluating."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients make one optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5e-5
    """Peak learning rate."""
    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    """How often the data is seen."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Stop after so many optimizer steps; -1 leaves it to ``num_train_epochs``."""
    lr_scheduler_type: str = "linear"
    """linear, cosine, cosine_with_restarts, constant, constant_with_warmup, and the rest that transformers knows."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps in which the learning rate rises."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Number of such steps; above 0 it wins over ``warmup_ratio``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay, on weight matrices only."""
    label_smoothing_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each label's weight that all tokens of the vocabulary get alike, in stages that learn tokens (pt, sft);
    in the evaluation's loss too, as in transformers."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where a loss, gradient or learning rate is not a number: end the run, or leave the step out. Never step on it."""
    max_skipped_steps: Annotated[int, Field(ge=1)] = 10
    """With ``on_nonfinite: skip``, the step after so many ends the run all the same."""
    early_stopping_steps: Annotated[int, Field(ge=1)] | None = None
    """End after so many evaluations in a row without a better ``metric_for_best_model`` (unset, ``loss``)."""
    bf16: bool | None = None
    """bfloat16: true where the hardware has it (else float32, and it says so); false never; unset, where it is fast."""
    fp16: bool = False
    """float16 mixed precision, on CUDA only."""
    pure_bf16: bool = False
    """Trained parameters in bfloat16 too, instead of float32: half their memory, and updates below 1/256 are lost."""
    strict_precision: bool = False
    """Make it an error when the hardware lacks the precision that the file asks for."""
    seed: int = 42
    """Seed of everything random."""
    ddp_timeout: Annotated[int, Field(gt=0)] = 1800
    """Seconds that processes wait for each other."""
    disable_gradient_checkpointing: bool | None = None
    """true: activations are kept; false: recomputed; unset: recomputed only where the memory estimate needs it."""
    gradient_checkpointing: bool | None = None
    """The same the other way round: true, activations are recomputed; false, kept."""
    gradient_checkpointing_kwargs: Annotated[dict[str, Any], BeforeValidator(_mapping)] | None = None
    """Arguments of ``torch.utils.checkpoint`` where activations are recomputed: ``determinism_check``, ``debug``,
    ``early_stop``. Recomputing is never reentrant, whatever ``use_reentrant`` says, with the same result."""
    auto_find_batch_size: bool = False
    """Taken, and done in any case: where memory runs out, rows are computed half as many at a time. The optimizer steps
    on the same global batch. Refused where that cannot be: several processes, losses that compare rows."""
    torch_compile: bool | None = None
    """Compile the decoder's layers for training: in half precision faster steps, for some seconds at the start. Layers
    in float32 on a CPU stay as they are: ft's own take less time. Unset, where one of the next two is set."""
    torch_compile_backend: str | None = None
    """Of torch's compiler: inductor (unset), or another one that is installed."""
    torch_compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = (
        None
    )
    """Of the backend inductor: how long it may look for faster kernels, and whether it makes CUDA graphs."""
    cache_frozen_prefix: bool | Literal["auto"] = "auto"
    """Whether what the layers under the lowest trained one compute is kept on disk and not computed again: ``auto``
    on a CPU, where the run has several epochs and there is room; true refuses a run that cannot; false never."""
    frozen_prefix_size: Annotated[float, Field(gt=0)] = 20.0
    """Largest size of what is kept in this way, of all runs together, in GB; what was not used for longest goes."""
    logging_dir: str | None = None
    """With ``report_to: tensorboard``, the folder that it writes into; unset, ``TENSORBOARD_LOGGING_DIR``, else one in
    ``output_dir/runs``."""
    logging_steps: Annotated[float, Field(gt=0)] = 10
    """Steps between log lines (below 1, a share of all steps)."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When checkpoints are written."""
    save_steps: Annotated[float, Field(gt=0)] = 500
    """Steps between checkpoints (below 1, a share of all steps)."""
    save_total_limit: Annotated[int, Field(ge=1)] | None = None
    """How many checkpoints are kept; the best and the last whole one always are."""
    save_only_model: bool = False
    """Checkpoints without optimizer and random state; they cannot be resumed from."""
    resume_from_checkpoint: bool | str | None = None
    """``auto`` (or true, unset): the last whole checkpoint in ``output_dir``, if any; a path; ``never`` (or false)."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to evaluate during training."""
    eval_steps: Annotated[float, Field(gt=0)] | None = None
    """Steps between evaluations; unset, ``logging_steps``."""
    plot_loss: bool = False
    """Draw ``training_loss.png``, and ``training_eval_loss.png`` where there are evaluations."""
    report_to: Names = ("none",)
    """Experiment trackers: none, tensorboard, wandb, mlflow, swanlab, trackio."""
    dataloader_drop_last: bool = False
    """Leave out the rows of an epoch that fill no batch; other ones in each epoch where rows are shuffled."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that load batches; 0 loads them in the run's own process."""

    @property
    def recomputes(self) -> bool | None:
        """Whether activations are to be recomputed; None where the memory decides."""
        if self.disable_gradient_checkpointing is not None:
            return not self.disable_gradient_checkpointing
        return self.gradient_checkpointing

    @property
    def compiler(self) -> tuple[str, str | None] | None:
        """Backend and mode of torch's compiler, where layers are to be compiled."""
        given = self.torch_compile_backend is not None or self.torch_compile_mode is not None
        wanted = given if self.torch_compile is None else self.torch_compile
        return (self.torch_compile_backend or INDUCTOR, self.torch_compile_mode) if wanted else None

    def pass_tokens(self, cpu: bool) -> int | None:
        """Tokens that are computed at a time, at most; None for whole batches, as a GPU wants them."""
        if self.tokens_per_pass == "auto":
            return 2048 if cpu else None
        return self.tokens_per_pass or None


LARGEST = 2**31 - 1
LEAST_TEMPERATURE = 1e-20


def _temperature(value: float) -> float:
    # float32 ends at 3e38: divided by less, a score after a penalty of 0.01 may be infinite
    if 0 < value < LEAST_TEMPERATURE:
        reason = f"must be 0, which takes the likeliest token, or at least {LEAST_TEMPERATURE:g}"
        raise PydanticCustomError("temperature", reason)
    return value


Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_temperature)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]


class HubOptions(OptionGroup):
    """Where what a run trains is uploaded to."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("uploads read what was saved")}

    push_to_hub: bool = False
    """Upload what is trained to a repository on the Hugging Face hub, while the run saves and at its end."""
    hub_model_id: str | None = None
    """The repository, ``owner/name`` or a name of your own; unset, the last part of ``output_dir``. It is made where it
    is not there."""
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save"
    """``end``: at the end alone; ``every_save``: the weights with each checkpoint too; ``checkpoint``: and the
    checkpoint as ``last-checkpoint``, to go on from elsewhere; ``all_checkpoints``: each under its own name."""
    hub_token: str | None = Field(default=None, repr=False)
    """Token that may write; unset, the one of ``HF_TOKEN`` or ``hf auth login``. Never written to logs or manifests."""
    hub_private_repo: bool | None = None
    """Whether a repository that is made is private; unset, as its owner's default is."""
    hub_always_push: bool = False
    """Upload a checkpoint although the one before is still being uploaded; else it is left out, the end never is."""
    hub_revision: str | None = None
    """Branch to upload to; it is made where it is not there. Unset, the main one."""


class GenerationOptions(OptionGroup):
    """How answers are sampled."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: _ANSWERS}

    do_sample: bool = True
    """Draw from the distribution; false always takes the likeliest token."""
    temperature: Temperature = 0.7
    """Randomness: below 1 sharper, above 1 flatter; 0 is the same as ``do_sample: false``."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Draw from the likeliest tokens that make up this share."""
    top_k: Annotated[int, Field(ge=0, le=LARGEST)] = 50
    """Draw from so many likeliest tokens; 0 for all."""
    num_beams: Annotated[int, Field(ge=1, le=256)] = 1
    """Beams; above 1, answers do not stream."""
    max_length: Annotated[int, Field(ge=1, le=LARGEST)] | None = None
    """Tokens of prompt and answer together; ``max_new_tokens`` wins."""
    max_new_tokens: Annotated[int, Field(ge=1, le=LARGEST)] = 1024
    """Tokens of the answer."""
    repetition_penalty: RepetitionPenalty = 1.0
    """Above 1, tokens that came before become less likely."""
    length_penalty: Annotated[float, Field(ge=-20, le=20)] = 1.0
    """With beams: above 0 favours longer answers."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text that is shown."""


class MediaOptions(OptionGroup):
    """For models that see: which of their parts are trained, and limits of images."""

    freeze_vision_tower: bool = True
    """Leave the part that reads images as it is."""
    freeze_multi_modal_projector: bool = True
    """Leave what brings its features to the language model as it is."""
    freeze_language_model: bool = False
    """Leave the language model as it is."""
    image_max_pixels: Annotated[int, Field(ge=1)] = 768 * 768
    """Largest image, width times height; larger ones are scaled down."""
    image_min_pixels: Annotated[int, Field(ge=1)] = 32 * 32
    """Smallest image."""


class VideoOptions(OptionGroup):
    """Limits of videos, which no run reads yet: a file that has them is told so."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("no run reads videos")}

    video_max_pixels: Annotated[int, Field(ge=1)] = 256 * 256
    """Largest video frame."""
    video_min_pixels: Annotated[int, Field(ge=1)] = 16 * 16
    """Smallest video frame."""
    video_fps: Annotated[float, Field(gt=0)] = 2.0
    """Frames taken per second."""
    video_maxlen: Annotated[int, Field(ge=1)] = 128
    """Frames taken at most."""


class ExportOptions(OptionGroup):
    """What ``ft export`` writes; of no effect elsewhere."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("only ft export reads it")}

    export_dir: str | None = None
    """Folder that the model is written into; one that is there already must be an earlier export."""
    export_size: Annotated[float, Field(gt=0)] = 5.0
    """Largest weight file, in GB; larger models are written in shards."""
    export_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the exported weights; ``auto`` is ``infer_dtype`` where that is set, else that of the base model."""
    export_device: Literal["cpu", "auto"] = "cpu"
    """Where adapters are merged; ``auto`` is the GPU where there is one."""
    export_legacy_format: bool = False
    """Taken at false: weights are written as safetensors, never pickled."""
    export_gguf: Literal["f32", "f16", "q8_0"] | None = None
    """Write ``model-<type>.gguf`` as well, for llama.cpp and Ollama."""


class ServingOptions(OptionGroup):
    """What ``ft serve`` does; of no effect elsewhere."""

    resume_harmless: ClassVar[Mapping[str, Harmless]] = {EVERY: Harmless("only ft serve reads it")}

    serve_host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs an API key."""
    serve_port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    serve_api_key_file: str | None = None
    """File whose first line is the key that requests must bring; the environment variable ``FT_API_KEY`` wins."""
    serve_name: str | None = None
    """Name of the model in requests; unset, the last part of its folder or hub id."""
    serve_adapters: dict[str, str] = Field(default_factory=dict)
    """Name -> folder or hub id of adapters that are served beside the model, each under its name."""
    serve_batch: Annotated[int, Field(ge=1)] = 8
    """Answers that are made at a time."""
    serve_queue: Annotated[int, Field(ge=0)] = 64
    """Answers that may wait for a place; further requests are answered with 429."""
    serve_max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Largest ``max_tokens`` of a request; a request that says none gets ``max_new_tokens``, or this if it is less."""
    serve_max_body: Annotated[int, Field(ge=1)] = 1 << 20
    """Largest request in bytes."""
    serve_max_messages: Annotated[int, Field(ge=1)] | None = None
    """Messages of a request; unset, one for every 2 tokens that the model can read."""
    serve_max_chars: Annotated[int, Field(ge=1)] | None = None
    """Characters of a request's messages and tools; unset, 16 for every token that the model can read."""
    serve_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a request may take, waiting included."""
    serve_read_timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds in which the head of a request must have come, and again its body."""
    serve_shutdown: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that answers have to end after SIGTERM or Ctrl-C."""


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
