"""Exports a model: merged adapters, template, stop tokens, and files for Ollama and llama.cpp."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.data.chat_template.renderer import Renderer
    from ftcore.inference.target import Target


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The written export.

    Args:
        folder: the folder.
        files: relative name -> size in bytes.
        dtype: dtype of the weights.
        parameters: number of parameters.
        notes: lines for the terminal.
    """

    folder: Path
    files: dict[str, int]
    dtype: str
    parameters: int
    notes: list[str] = field(default_factory=list)


def check_options(plan: Plan) -> Path:
    """Checks the export options and returns the folder; imports only light modules.

    Raises:
        UsageError: with all problems.
    """
    from ftcore.export.folder import check_folder

    options, problems = plan.export, []
    if options.export_dir is None:
        problems.append(Problem("export_dir is missing", plan.file, "write export_dir=FOLDER"))
    else:
        try:
            check_folder(Path(options.export_dir).expanduser(), plan.where("export_dir"))
        except UsageError as error:
            problems += error.problems
    if options.export_legacy_format:
        hint = "pickled weights can run code and are not supported; remove the option to write safetensors"
        problems.append(
            Problem("export_legacy_format: true selects the pickle format", plan.where("export_legacy_format"), hint)
        )
    if problems:
        raise UsageError(problems)
    return Path(str(options.export_dir)).expanduser()


def export(target: Target, *, force: bool = False) -> Exported:
    """Merges adapters, converts the model, and writes the export.

    Args:
        target: model, adapters and their training run.
        force: whether to accept a template other than that of training.

    Raises:
        UsageError: see `check_options`; also for another template, or an architecture without GGUF support.
        RunError: the disk is too full.
    """
    from ftcore.data.multimodal.images import save_processor
    from ftcore.export import folder as folders
    from ftcore.export import ollama
    from ftcore.export.merging import merged_model
    from ftcore.inference.generation_config import set_generation
    from ftcore.inference.target import check_template

    plan, place_ = target.plan, check_options(target.plan)
    target.warn()
    tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=plan)
    if target.trained and target.trained.sha256 and not force:
        check_template(plan, tokenizer, target.trained)
    renderer = _renderer(plan, tokenizer)
    gguf = _gguf(plan, tokenizer)
    model: Any = merged_model(plan)
    set_generation(plan, model, tokenizer, renderer)
    folders.check_space(place_, _bytes(model) + (gguf.bytes(model) if gguf else 0))
    notes: list[str] = []
    with folders.staged(place_) as staging:
        model.save_pretrained(staging, max_shard_size=int(plan.export.export_size * 10**9))
        tokenizer.save_pretrained(staging)
        if processor := plan.plugins.hook.ft_load_processor(plan=plan, tokenizer=tokenizer):
            save_processor(processor, staging)
        if gguf:
            gguf.write(model, renderer, staging)
        text, note = ollama.modelfile(plan, renderer, f"./{gguf.name}" if gguf else ".")
        (staging / "Modelfile").write_text(text, encoding="utf-8")
        notes += [note] if note else []
        folders.seal(staging, _facts(target, model))
    files = {path.relative_to(place_).as_posix(): path.stat().st_size for path in place_.rglob("*") if path.is_file()}
    return Exported(
        folder=place_,
        files=dict(sorted(files.items())),
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=model.num_parameters(),
        notes=notes,
    )


def _renderer(plan: Plan, tokenizer: Any) -> Renderer | None:
    """The renderer of the run's template, which is stored in the tokenizer; None for plain text."""
    from ftcore.data.chat_template.renderer import Renderer

    if plan.template is None and not tokenizer.chat_template:
        return None
    renderer = Renderer.from_plan(plan, tokenizer)
    tokenizer.chat_template = renderer.source
    return renderer


def _gguf(plan: Plan, tokenizer: Any) -> Any:
    """The GGUF writer, checked before the model is loaded; None without ``export_gguf``."""
    if plan.export.export_gguf is None:
        return None
    from ftcore.export.gguf_file import GgufFile

    return GgufFile.of(plan, tokenizer)


def _bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def _facts(target: Target, model: Any) -> dict[str, Any]:
    """The origin of the weights, for the manifest."""
    from ftcore.runner.artifacts import PACKAGES

    plan = target.plan
    return {
        "model": {"name_or_path": plan.model.model_name_or_path, "revision": plan.model.model_revision},
        "adapters": list(plan.model.adapter_name_or_path),
        "template": plan.template.full_name if plan.template else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
