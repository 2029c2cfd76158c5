"""Adapters: their folder or hub repository, and the tokens that were added for them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.errors import Problem, UsageError
from ftcore.models.files import base_files, weights_of
from ftcore.models.trained_run import read_trained

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER = "tokenizer.json"
_BEFORE = "base_model.model."
"""Prefix of module names in an adapter's file."""


def adapter_folder(plan: Plan, name: str) -> Path:
    """The local folder of an adapter, downloaded from the hub if it is not a folder.

    Raises:
        UsageError: if it cannot be downloaded or has no safetensors file; a pickled adapter is not read.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(plan, name)
    if missing := [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]:
        hint = "pickled weights (.bin) are not read: convert them with peft's save_pretrained"
        option, where = _named(plan, name)
        raise UsageError(Problem(f"{option}: {name} has no {' and no '.join(missing)}", where, hint))
    return folder


def added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Id -> text and whether it is special, for the added tokens of the adapter's tokenizer.

    Empty if the adapter has no tokenizer.

    Raises:
        UsageError: its tokenizer.json cannot be read.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["added_tokens"]
        return {token["id"]: (token["content"], bool(token["special"])) for token in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(Problem(f"{file} cannot be read: {error!r}", hint="save the adapter again")) from error


def vocabulary_rows(folder: Path, model: Any) -> int:
    """Rows of the embedding or head in an adapter; 0 if it has neither."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is not a dict
    return max((shapes[name][axis] for name, (axis, _) in _vocabulary(model, shapes).items()), default=0)


@contextmanager
def fitting(folder: Path, model: Any) -> Iterator[Path]:
    """A folder with the adapter for this model: its own, or a copy with more rows if the model has more tokens.

    Added rows of embedding and head are the model's own; added rows of LoRA matrices are 0.
    """
    from safetensors.torch import load_file, save_file

    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 < vocabulary_rows(folder, model) < rows:
        yield folder
        return
    tensors = load_file(folder / WEIGHTS)
    for name, (axis, own) in _vocabulary(model, tensors).items():
        tensor = tensors[name]
        if (missing := rows - tensor.shape[axis]) > 0:
            shape = [*tensor.shape]
            shape[axis] = missing
            more = tensor.new_zeros(shape) if own is None else own.detach()[-missing:].to(tensor)
            tensors[name] = _grown(tensor, more, axis)
    with tempfile.TemporaryDirectory(prefix="ft-") as name:
        grown = Path(name)
        (grown / CONFIG).write_bytes((folder / CONFIG).read_bytes())
        save_file(tensors, grown / WEIGHTS)
        yield grown


def _grown(tensor: Any, more: Any, axis: int) -> Any:
    import torch

    return torch.cat([tensor, more], dim=axis).contiguous()


def _vocabulary(model: Any, names: Any) -> dict[str, tuple[int, Any]]:
    """Tensors with a row per token -> the axis of the tokens, and the model's own tensor, if any."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    found: dict[str, tuple[int, Any]] = {}
    for path, module in model.named_modules():
        if not any(module is end for end in ends):
            continue
        kinds = {"weight": (0, module.weight), "bias": (0, getattr(module, "bias", None))}
        kinds |= {"lora_embedding_A": (1, None), "lora_B.weight": (0, None)}
        found |= {f"{_BEFORE}{path}.{end}": kind for end, kind in kinds.items() if f"{_BEFORE}{path}.{end}" in names}
    return found


def _fetched(plan: Plan, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    from ftcore.models import hub_access

    known = hub_access.adapter_name(plan, name)
    option, where = _named(plan, name)
    if known and (problem := known.problem(where)):
        raise UsageError(Problem(f"{option}: {problem.message}", where, problem.hint))
    cache, token, local = plan.model.cache_dir, plan.model.hf_hub_token, bool(known and known.local_only())
    files = [CONFIG, WEIGHTS, TOKENIZER]
    try:
        return Path(snapshot_download(name, allow_patterns=files, cache_dir=cache, token=token, local_files_only=local))
    except (OSError, ValueError) as error:
        reason, hint = "cannot be downloaded", "check the name and the network;"
        if isinstance(error, GatedRepoError):
            reason, hint = "is gated", "accept its terms on the hub and set HF_TOKEN;"
        elif isinstance(error, RepositoryNotFoundError):
            reason, hint = "is not on the hub, or private", "check the name; for a private repository set HF_TOKEN;"
        elif isinstance(error, OSError) and error.errno:  # such as a full disk
            reason = f"cannot be downloaded: {error.strerror}"
        hint = f"{hint} a local folder works too"
        raise UsageError(Problem(f"{option}: adapter {name} {reason}", where, hint)) from error


def _named(plan: Plan, name: str) -> tuple[str, str]:
    """The option that names an adapter, and its place."""
    for option, bound in plan.options.items():
        if bound.value == name or (isinstance(bound.value, tuple) and name in bound.value):
            return option, bound.origin
    return "adapter_name_or_path", plan.file


def other_bases(plan: Plan) -> Iterator[str]:
    """A warning for each of the plan's adapters that was trained on other base weights than those of this plan.

    Weights are compared by the digests of their files in the manifest of the adapter's run.
    """
    names, now = plan.model.adapter_name_or_path, None
    for number, name in enumerate(names):
        folder = Path(name).expanduser()
        trained = read_trained(folder) if folder.is_dir() else None
        if trained is None or not trained.adapter:
            continue
        now = base_files(plan) if now is None else now
        original, current = weights_of(trained.files), weights_of(now)
        if original and current and original != current:
            base = plan.model.model_name_or_path
            yield (
                f"adapter {name} was trained on other base weights, {trained.model} ({_weights(trained.files)}), "
                f"than those loaded here, {base} ({_weights(now)})"
            )
        if _last_parts(trained.base_adapters) != _last_parts(names[:number]):
            yield (
                f"adapter {name} was trained on a base with {_joined(trained.base_adapters)} merged in, "
                f"but is loaded here on one with {_joined(names[:number])}"
            )


def _last_parts(names: Sequence[str]) -> list[str]:
    """The last parts of paths, since folders may have been moved."""
    return [Path(name).name for name in names]


def _joined(names: Sequence[str]) -> str:
    return " and ".join(names) or "no adapter"


def _weights(files: Mapping[str, str]) -> str:
    """``model.safetensors sha256 0123456789ab`` for the first weight file."""
    found = [(name, digest) for name, digest in sorted(files.items()) if name.endswith(".safetensors")]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0][0]} sha256 {found[0][1][:12]}{more}"
