"""The cache key of a tokenised dataset: everything that its tokens depend on."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftcore.api.samples
from ftcore.api.components import DatasetFormat
from ftcore.api.dataset_spec import DatasetSpec
from ftcore.api.plan import Plan
from ftcore.data.chat_template.renderer import Renderer
from ftcore.data.datasets.packing import splits
from ftcore.data.multimodal.media_files import MediaFolders
from ftcore.data.sources.resolve import data_files
from ftcore.utils.file_digests import file_sha256
from ftcore.utils.hashing import file_hash, json_sha256, package_of, sampled_sha256, sources_sha256

if TYPE_CHECKING:
    from ftcore.api.plan import RegisteredComponent

WITHOUT_EFFECT = frozenset(
    {
        *("dataset", "eval_dataset", "dataset_dir"),  # the files' bytes count, not where they are
        *("max_samples",),  # in "rows", with the dataset's own limit
        *("default_system", "enable_thinking", "preserve_thinking"),  # in "template"
        *("template_check", "on_bad_row", "max_bad_rows", "val_size", "disable_shuffling"),  # about rows as they are
        *("mix_strategy", "interleave_probs", "packing", "neat_packing", "packing_split"),  # in "whole documents"
        *("streaming", "buffer_size"),  # when a row is tokenised
        *("overwrite_cache", "tokenized_path", "preprocessing_num_workers", "preprocessing_batch_size"),
    }
)
"""Options of `DataOptions` that do not change the tokens of a row. All other options are part of the key."""
SOURCES = (package_of(__name__), ftcore.api.samples)
"""Packages and modules that turn rows into tokens. The code of each dataset format is part of the key as well."""
_PACKAGES = ("ftcore", "jinja2", "tokenizers", "transformers")


def key_parts(
    spec: DatasetSpec, plan: Plan, renderer: Renderer, kind: str, *, questions: bool = False
) -> dict[str, str]:
    """Name of each dependency -> its value or digest.

    Args:
        spec: the dataset. A hub dataset counts by name, a streamed file by samples of its bytes.
        plan: the run's.
        renderer: template and tokenizer.
        kind: name of the function that selects what is stored of a row.
        questions: whether the last answer of a conversation is optional.

    Raises:
        OSError: a file cannot be read.
    """
    drawn = f"{spec.num_samples} drawn with seed {plan.training.seed}, " if spec.num_samples else ""
    backend = renderer.tokenizer.backend_tokenizer
    options = {name: value for name, value in plan.data.model_dump(mode="json").items() if name not in WITHOUT_EFFECT}
    parts: dict[str, Any] = {
        "files": digest(_content(spec, plan)),
        "rows": f"{drawn}{plan.data.max_samples or 'all'}",
        "format": {"name": spec.format, "columns": spec.columns, "tags": spec.tags, "ranking": spec.ranking},
        "kind": [kind, *plan.stage.component.samples, *["Question"] * questions],
        "whole documents": splits(plan),
        "images": _images(plan, renderer),
        "template": digest([renderer.source, renderer.stop, renderer.variables, renderer.stop_ids]),
        "tokenizer": digest([backend.to_str(), renderer.tokenizer.eos_token_id]),
        "formats": sorted(f"{offer.full_name} {offer.version} {_code(offer)}" for offer in _formats(plan)),
        "code": digest([sources_sha256(SOURCES), sys.version_info[:2]]),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        **options,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in parts.items()}


def _images(plan: Plan, renderer: Renderer) -> str:
    """How images are read, and the folders searched: the table stores paths, not bytes."""
    if renderer.pictures is None:
        return "not read"
    folders = [str(folder.resolve()) for folder in MediaFolders.of(plan).folders]
    return digest([renderer.pictures.fingerprint, folders])


def _content(spec: DatasetSpec, plan: Plan) -> list[str | None]:
    if spec.path is None:
        return [spec.hub_id, spec.subset, spec.folder, spec.split]
    known = sampled_sha256 if plan.data.streaming else file_sha256
    return [known(path) for path in data_files(spec)]


def digest(value: Any) -> str:
    """sha256 of a value of JSON's kinds, shortened to 32 digits."""
    return json_sha256(value)[:32]


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The entries that differ, one line each."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name, 'not set')}, now it is {now.get(name, 'not set')}" for name in names]


def _formats(plan: Plan) -> Iterable[RegisteredComponent[DatasetFormat]]:
    """All dataset formats: which of them reads a dataset is known only from its rows."""
    return plan.plugins.of(DatasetFormat)


def _code(offer: RegisteredComponent[DatasetFormat]) -> str:
    """Digest of the plugin's source files: its version may stay the same during development."""
    try:
        file = Path(inspect.getfile(type(offer.component)))
    except (TypeError, OSError):  # made on the spot, in a test or an interpreter
        return ""
    return sources_sha256([file.parent if (file.parent / "__init__.py").is_file() else file])


def data_hashes(plan: Plan) -> dict[str, str]:
    """Dataset -> sha256 of its file or folder; of streamed ones, which take hours to read, samples of their bytes."""
    hashes = {spec.name: file_hash(spec.path) for spec in plan.eval_datasets if spec.path}
    for spec in plan.datasets:
        if spec.path and plan.data.streaming:
            hashes[spec.name] = "samples " + " ".join(map(sampled_sha256, data_files(spec)))
        elif spec.path:
            hashes[spec.name] = file_sha256(spec.path) if spec.path.is_file() else file_hash(spec.path)
    return hashes
