"""What answers depend on, as plain facts: two runs with the same facts give the same answers."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftcore.data.hashing import sampled_sha256
from ftcore.plan import Plan

READ = ("*.safetensors", "*config.json", "tokenizer*", "*.jinja")
"""Files of a model's or an adapter's folder that are read."""
PACKAGES = ("ftcore", "torch", "transformers", "tokenizers", "peft")
DATA = ("cutoff_len", "default_system", "enable_thinking", "preserve_thinking")
"""Options of the data that shape a prompt."""
NOT = ("hf_hub_token", "cache_dir")
"""Options of the model that say how it is fetched."""


def facts(plan: Plan, inputs: Sequence[Any]) -> dict[str, Any]:
    """Facts by name.

    Args:
        plan: of the answers.
        inputs: what is answered or scored, in its order; anything that JSON or ``repr`` shows whole.
    """
    found: dict[str, Any] = {"inputs": len(inputs), "sha256 of the inputs": _digest(inputs)}
    source = {"model": _folder(plan.model.model_name_or_path)}
    source |= {f"adapter {name}": _folder(name) for name in plan.model.adapter_name_or_path}
    found |= {f"sha256 of {name}": digest for name, digest in source.items() if digest}
    found |= _options(plan)
    offers = [selected for selected in (plan.engine, plan.family, plan.template) if selected is not None]
    found |= {f"version of {selected.full_name}": selected.version for selected in offers}
    if plan.template:
        found["sha256 of the template"] = hashlib.sha256(plan.template.component.source().encode()).hexdigest()
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
    digest = hashlib.sha256()
    for one in inputs:
        digest.update(json.dumps(one, default=repr, sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _folder(name: str | None) -> str:
    """Over names and bytes of what is read of a folder, of large files samples; empty for what is no folder."""
    folder = Path(str(name)).expanduser()
    if not folder.is_dir():
        return ""
    files = sorted({file for pattern in READ for file in folder.glob(pattern) if file.is_file()})
    parts = [f"{file.name} {sampled_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
