"""The first contact with the hub: one small request for each name, once, with a short time limit.

The hub's client asks five times and waits between, up to 76 s for a name that cannot be fetched, which is right in the
middle of a download of 100 GB and wrong at the start of a run. So each name is asked for here first. What is there is
then downloaded by the client as ever, with its own retries and limits. Where the hub cannot be reached, what its cache
holds is used without asking again.
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
"""Until the hub must have answered the first request, its name looked up and all."""
FILES = {"model": "config.json", "adapter": "adapter_config.json", "dataset": "README.md"}
"""What is asked for; a dataset that has none is there all the same."""
_FOLDER = "a folder on this machine serves as well"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A name of something on the hub.

    Args:
        name: ``organisation/name``.
        what: which of `FILES` it has.
        revision: branch, tag or commit; None for the main one.
        cache_dir: where it is kept; None for the hub client's own.
        token: for what is private or gated; None for the one that the client knows.
    """

    name: str
    what: Literal["model", "adapter", "dataset"] = "model"
    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None

    @property
    def kind(self) -> str:
        """The hub's word."""
        return "dataset" if self.what == "dataset" else "model"

    def cached(self) -> bool:
        """Whether the client's cache has the file that is asked for; of a dataset, anything."""
        from huggingface_hub import try_to_load_from_cache

        if self.what == "dataset":
            return _has_dataset(self.name)
        found = try_to_load_from_cache(self.name, FILES[self.what], cache_dir=self.cache_dir, revision=self.revision)
        return isinstance(found, str)

    def problem(self, where: str = "") -> Problem | None:
        """Why it can neither be fetched nor found in the cache; None where it can."""
        refusal = contact(self)
        if refusal is None or self.cached():
            return None
        reason, hint = refusal
        return Problem(f"{self.what} {self.name} {reason}", where, hint)

    def local_only(self) -> bool:
        """Whether only the cache is to be looked at, as the hub does not give it."""
        return contact(self) is not None


Refusal = tuple[str, str]
"""Why something cannot be fetched, and what to do."""


@cache
def contact(name: HubName) -> Refusal | None:
    """Asks the hub once whether it has what is named; None where it has, or may have it. What is cached is told so.

    An answer of the server's that says «later» (429, 5xx) is none: the client, which waits and asks again, sees to it.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "is not in the cache, and HF_HUB_OFFLINE is set", f"unset it, or fetch it before; {_FOLDER}"
    answer: list[Refusal | None] = []
    importlib.import_module("huggingface_hub.file_download")  # what is timed imports nothing
    thread = threading.Thread(target=lambda: answer.append(_asked(name)), daemon=True)
    thread.start()
    thread.join(SECONDS)  # looking up the server's name knows no limit of time
    late = f"cannot be fetched: {constants.ENDPOINT} does not answer within {SECONDS:g} s"
    refusal = answer[0] if answer else (late, f"is the network there? {_FOLDER}")
    if refusal and name.cached():
        log.warning("%s %s is taken from the cache: it %s", name.what, name.name, refusal[0])
    return refusal


def _asked(name: HubName) -> Refusal | None:
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    try:
        url = hf_hub_url(name.name, FILES[name.what], repo_type=name.kind, revision=name.revision)
        get_hf_file_metadata(url, token=name.token, timeout=SECONDS)
    except errors.EntryNotFoundError:
        return None  # it is there, without this file: what reads it says so
    except errors.GatedRepoError:
        return "is gated", "accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        return "is not on the hub, or private", "is the name right? for a private one set HF_TOKEN"
    except errors.RevisionNotFoundError:
        return f"has no revision {name.revision!r}", "write model_revision: main, or one that it has"
    except errors.HFValidationError:
        return "is no name that the hub has", "write organisation/name"
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 429 or status >= 500:
            return None
        if status in (401, 403):
            return "is private or gated", "accept its terms on the hub, and set HF_TOKEN to a token that may read it"
        return f"cannot be fetched: {constants.ENDPOINT} answers {status}", f"is the name right? {_FOLDER}"
    except Exception as error:  # its client's own, of the library that speaks HTTP for it
        why = " ".join(str(error).split())[:120] or type(error).__name__
        reason = f"cannot be fetched: {constants.ENDPOINT} cannot be reached ({why})"
        return reason, f"is the network there? {_FOLDER}"
    return None


def _has_dataset(name: str) -> bool:
    import os

    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    return (home / name.replace("/", "___").lower()).is_dir() or (home / name.replace("/", "___")).is_dir()


def model_name(plan: Plan) -> HubName | None:
    """The plan's base model, where it is on the hub."""
    name = str(plan.model.model_name_or_path)
    if plan.source is not None or not _on_hub(name):
        return None
    return HubName(name=name, revision=plan.model.model_revision, **_access(plan))


def adapter_name(plan: Plan, name: str) -> HubName | None:
    """An adapter, where it is on the hub."""
    return HubName(name=name, what="adapter", **_access(plan)) if _on_hub(name) else None


def _access(plan: Plan) -> dict[str, Any]:
    return {"cache_dir": plan.model.cache_dir, "token": plan.model.hf_hub_token}


def _on_hub(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not Path(name).expanduser().is_dir()


def names(plan: Plan) -> Iterator[tuple[str, HubName]]:
    """All that the plan's run reads from the hub, each with the place that names it."""
    beside = plan.stage.component.auxiliary_models(plan)
    for option, other in {"": plan, **beside}.items():
        if found := model_name(other):
            yield plan.where(option or "model_name_or_path"), found
        for name in other.model.adapter_name_or_path:
            if found := adapter_name(other, name):
                yield plan.where(naming(plan, name) or option or "adapter_name_or_path"), found
    for spec in (*plan.datasets, *plan.eval_datasets):
        if spec.hub_id:
            yield spec.where, HubName(name=spec.hub_id, what="dataset")


def naming(plan: Plan, name: str) -> str:
    """The option that names a model or an adapter; empty where none does."""
    for option, bound in plan.options.items():
        if bound.value == name or (isinstance(bound.value, tuple) and name in bound.value):
            return option
    return ""


def check(plan: Plan) -> None:
    """Asks the hub for all that the run reads from it, at the same time.

    Raises:
        UsageError: what can neither be fetched nor found in the cache, all of it.
    """
    named = list(dict.fromkeys(names(plan)))
    _ask_all(name for _, name in named)
    if problems := [problem for where, name in named if (problem := name.problem(where))]:
        raise UsageError(problems)


def _ask_all(asked: Iterable[HubName]) -> None:
    threads = [threading.Thread(target=contact, args=(name,), daemon=True) for name in dict.fromkeys(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def planned(make: Callable[[], Plan]) -> Plan:
    """The plan, made once more where its model's ``config.json`` had to be fetched: family and template go by it.

    Raises:
        UsageError: the model can neither be fetched nor found in the cache.
    """
    plan = make()
    return make() if fetch_config(plan) else plan


def fetch_config(plan: Plan) -> bool:
    """Fetches ``config.json`` of a model of which nothing is here; whether it did.

    Raises:
        UsageError: the model can neither be fetched nor found in the cache.
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
        return False  # what loads the model says so
    return True
