"""The first request to the hub: one small request per name, with a short time limit.

The hub's client retries five times, for up to 76 s if a name cannot be downloaded. That suits a download of 100 GB,
but not the start of a run. Each name is therefore checked here first. The client then downloads it with its own retries
and limits. If the hub cannot be reached, its cache is used without further requests.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftcore.errors import Problem, UsageError
from ftcore.models.resolve import HUB_ID

if TYPE_CHECKING:
    from ftcore.api.plan import Plan

log = logging.getLogger(__name__)

SECONDS = 6.0
"""Time limit of the first request, name resolution included."""
FILES = {"model": "config.json", "adapter": "adapter_config.json", "dataset": "README.md"}
"""The file that is requested; a dataset may exist without it."""
_FOLDER = "a local folder works too"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A model, adapter or dataset on the hub.

    Args:
        name: ``organisation/name``.
        what: a key of `FILES`.
        revision: branch, tag or commit; None for the main branch.
        cache_dir: folder for downloads; None for the hub client's default.
        token: token for private or gated repositories; None for the client's own.
    """

    name: str
    what: Literal["model", "adapter", "dataset"] = "model"
    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None

    @property
    def kind(self) -> str:
        """The hub's type of repository."""
        return "dataset" if self.what == "dataset" else "model"

    def cached(self) -> bool:
        """Whether the client's cache has the requested file, or for a dataset anything of it."""
        from huggingface_hub import try_to_load_from_cache

        if self.what == "dataset":
            return _has_dataset(self.name)
        found = try_to_load_from_cache(self.name, FILES[self.what], cache_dir=self.cache_dir, revision=self.revision)
        return isinstance(found, str)

    def problem(self, where: str = "") -> Problem | None:
        """Why it can neither be downloaded nor read from the cache; None if it can."""
        refusal = contact(self)
        if refusal is None or self.cached():
            return None
        reason, hint = refusal
        return Problem(f"{self.what} {self.name} {reason}", where, hint)

    def local_only(self) -> bool:
        """Whether only the cache is used, since it cannot be downloaded."""
        return contact(self) is not None


Refusal = tuple[str, str]
"""Why something cannot be downloaded, and what to do."""


@cache
def contact(name: HubName) -> Refusal | None:
    """Asks the hub once whether a name exists; None if it does or may. Logs a warning if the cache is used instead.

    Status 429 and 5xx count as «may exist»: the client waits and retries.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return (
            "is not in the cache, and HF_HUB_OFFLINE is set",
            f"unset HF_HUB_OFFLINE, or download it before; {_FOLDER}",
        )
    answer: list[Refusal | None] = []
    importlib.import_module("huggingface_hub.file_download")  # so that the time limit does not include this import
    thread = threading.Thread(target=lambda: answer.append(_request(name)), daemon=True)
    thread.start()
    thread.join(SECONDS)  # name resolution has no time limit of its own
    late = f"cannot be downloaded: {constants.ENDPOINT} does not answer within {SECONDS:g} s"
    refusal = answer[0] if answer else (late, f"check the network; {_FOLDER}")
    if refusal and name.cached():
        log.warning("%s %s is read from the cache: it %s", name.what, name.name, refusal[0])
    return refusal


def _request(name: HubName) -> Refusal | None:
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    try:
        url = hf_hub_url(name.name, FILES[name.what], repo_type=name.kind, revision=name.revision)
        get_hf_file_metadata(url, token=name.token, timeout=SECONDS)
    except errors.EntryNotFoundError:
        return None  # the repository exists without this file; its reader reports that
    except errors.GatedRepoError:
        return "is gated", "accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        return "is not on the hub, or private", "check the name; for a private repository set HF_TOKEN"
    except errors.RevisionNotFoundError:
        return f"has no revision {name.revision!r}", "write model_revision: main, or an existing revision"
    except errors.HFValidationError:
        return "is not a valid name on the hub", "write organisation/name"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 429 or status >= 500:
            return None
        if status in (401, 403):
            return "is private or gated", "accept its terms on the hub, and set HF_TOKEN to a token with read access"
        return f"cannot be downloaded: {constants.ENDPOINT} answers with status {status}", f"check the name; {_FOLDER}"
    except Exception as error:  # the HTTP library of the client has its own exceptions
        why = " ".join(str(error).split())[:120] or type(error).__name__
        reason = f"cannot be downloaded: {constants.ENDPOINT} cannot be reached ({why})"
        return reason, f"check the network; {_FOLDER}"
    return None


def _has_dataset(name: str) -> bool:
    import os

    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    return (home / name.replace("/", "___").lower()).is_dir() or (home / name.replace("/", "___")).is_dir()


def model_name(plan: Plan) -> HubName | None:
    """The plan's base model, if it is on the hub."""
    name = str(plan.model.model_name_or_path)
    if plan.source is not None or not _on_hub(name):
        return None
    return HubName(name=name, revision=plan.model.model_revision, **_access(plan))


def adapter_name(plan: Plan, name: str) -> HubName | None:
    """An adapter, if it is on the hub."""
    return HubName(name=name, what="adapter", **_access(plan)) if _on_hub(name) else None


def _access(plan: Plan) -> dict[str, Any]:
    return {"cache_dir": plan.model.cache_dir, "token": plan.model.hf_hub_token}


def _on_hub(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).expanduser().is_dir()


def names(plan: Plan) -> Iterator[tuple[str, HubName]]:
    """Everything that the plan's run reads from the hub, each with the place that names it."""
    auxiliary = plan.stage.component.auxiliary_models(plan)
    for option, other in {"": plan, **auxiliary}.items():
        if found := model_name(other):
            yield plan.where(option or "model_name_or_path"), found
        for name in other.model.adapter_name_or_path:
            if found := adapter_name(other, name):
                yield plan.where(naming(plan, name) or option or "adapter_name_or_path"), found
    for spec in (*plan.datasets, *plan.eval_datasets):
        if spec.hub_id:
            yield spec.where, HubName(name=spec.hub_id, what="dataset")


def naming(plan: Plan, name: str) -> str:
    """The option that names a model or an adapter; empty if none does."""
    for option, bound in plan.options.items():
        if bound.value == name or (isinstance(bound.value, tuple) and name in bound.value):
            return option
    return ""


def check(plan: Plan) -> None:
    """Checks in parallel everything that the run reads from the hub.

    Raises:
        UsageError: with everything that can neither be downloaded nor read from the cache.
    """
    named = list(dict.fromkeys(names(plan)))
    _contact_all(name for _, name in named)
    if problems := [problem for where, name in named if (problem := name.problem(where))]:
        raise UsageError(problems)


def _contact_all(names: Iterable[HubName]) -> None:
    threads = [threading.Thread(target=contact, args=(name,), daemon=True) for name in dict.fromkeys(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def planned(make: Callable[[], Plan]) -> Plan:
    """The plan, made again if its model's ``config.json`` had to be downloaded: it determines family and template.

    Raises:
        UsageError: the model can neither be downloaded nor read from the cache.
    """
    plan = make()
    return make() if fetch_config(plan) else plan


def fetch_config(plan: Plan) -> bool:
    """Downloads ``config.json`` of a model that is not on this machine; returns whether it did.

    Raises:
        UsageError: the model can neither be downloaded nor read from the cache.
    """
    if plan.config is not None or (name := model_name(plan)) is None:
        return False
    if problem := name.problem(plan.where(naming(plan, name.name) or "model_name_or_path")):
        raise UsageError(problem)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(name.name, FILES["model"], revision=name.revision, cache_dir=name.cache_dir, token=name.token)
    except EntryNotFoundError:
        return False  # loading the model reports that
    return True
