"""The facts that determine answers: two runs with the same facts give the same answers."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftcore.api.plan import Plan
from ftcore.models.files import model_files, source_of
from ftcore.utils.file_digests import file_sha256
from ftcore.utils.hashing import new_digest, sha256_of

READ = ("tokenizer*", "*.jinja", "generation_config.json")
"""Files in a model's folder, besides weights, that affect tokenisation and stopping."""
PACKAGES = ("ftcore", "torch", "transformers", "tokenizers", "peft")
DATA = ("cutoff_len", "default_system", "enable_thinking", "preserve_thinking")
"""Data options that affect prompts."""
NOT = ("hf_hub_token", "cache_dir")
"""Model options that affect only the download."""


def facts(plan: Plan, inputs: Sequence[Any]) -> dict[str, Any]:
    """Facts by name.

    Args:
        plan: the plan of the answers.
        inputs: prompts or conversations in order; JSON or ``repr`` must show them completely.
    """
    found: dict[str, Any] = {"sha256 of the inputs": _digest(inputs)}
    found |= {f"sha256 of {name}": digest for name, digest in {**model_files(plan), **_beside(plan)}.items()}
    found |= _options(plan)
    offers = [selected for selected in (plan.engine, plan.family, plan.template) if selected is not None]
    found |= {f"version of {selected.full_name}": selected.version for selected in offers}
    if plan.template:
        found["sha256 of the template"] = sha256_of(plan.template.component.source())
    return found | {f"version of {name}": importlib.metadata.version(name) for name in PACKAGES}


def _options(plan: Plan) -> Mapping[str, Any]:
    owners = ("model", "generation", "selection")
    kinds = (plan.method, plan.engine)
    components = tuple(f"{kind.component.kind} {kind.component.name}" for kind in kinds)
    found = {
        name: bound.value
        for name, bound in sorted(plan.options.items())
        if (bound.owner in (*owners, *components) or name in DATA) and name not in NOT
    }
    found["per_device_eval_batch_size"] = plan.training.per_device_eval_batch_size
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def _digest(inputs: Sequence[Any]) -> str:
    digest = new_digest()
    for one in inputs:
        digest.update(json.dumps(one, default=repr, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _beside(plan: Plan) -> dict[str, str]:
    folder = Path(source_of(plan))
    files = {file for pattern in READ for file in folder.glob(pattern) if file.is_file()}
    return {file.name: file_sha256(file) for file in sorted(files)}
