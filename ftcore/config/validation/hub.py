"""Checks of an upload before training: there is a token, and the hub accepts the repository's name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ftcore.api.plan import Plan
from ftcore.errors import Problem

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
"""huggingface_hub's rule (`validate_repo_id`)."""


def repository(plan: Plan) -> str:
    """The repository's name: that of the file, or the name of the run's folder."""
    return plan.hub.hub_model_id or plan.output_dir.absolute().name


def problems(plan: Plan) -> Iterable[Problem]:
    """Problems of a run that uploads its model."""
    if not plan.hub.push_to_hub:
        return
    where = plan.where("push_to_hub")
    name = repository(plan)
    parts = name.split("/")
    if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts) or name.endswith(".git"):
        hint = "write hub_model_id: OWNER/NAME, made of letters, digits, and . - _ between them"
        yield Problem(f"{name!r} is not a valid repository name on the hub", plan.where("hub_model_id"), hint)
    if not plan.training.do_train:
        yield Problem(
            "push_to_hub is true, and nothing is trained", where, "write do_train: true, or remove push_to_hub"
        )
    if not token(plan):
        hint = "write hub_token, set HF_TOKEN, or log in with hf auth login"
        yield Problem("push_to_hub needs a hub token, and there is none", where, hint)
    if offline():
        hint = "unset HF_HUB_OFFLINE, or remove push_to_hub"
        yield Problem("push_to_hub is true, and HF_HUB_OFFLINE forbids the network", where, hint)


def token(plan: Plan) -> str | None:
    """The token for uploads."""
    from huggingface_hub import get_token

    return plan.hub.hub_token or get_token()


def offline() -> bool:
    """Whether the hub must not be contacted."""
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())
