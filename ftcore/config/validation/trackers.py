"""Experiment trackers under transformers' names, and the packages that they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec

from packaging.requirements import Requirement

from ftcore.api.plan import Plan
from ftcore.errors import Problem

TRACKERS: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab<0.8"),  # transformers 5.23 calls get_run() first, which 0.8 refuses
    "trackio": ("trackio", "trackio"),
    "azure_ml": ("azureml", "azureml-sdk"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": ("kubeflow", "kubeflow"),
    "neptune": ("neptune", "neptune"),
}
"""Name in ``report_to`` -> module, and pip's requirement with the versions that transformers supports. ``none`` and
``all`` (all that are installed) are names too."""


def problems(plan: Plan) -> Iterable[Problem]:
    """Trackers that do not exist, or whose package is not installed."""
    where = plan.where("report_to")
    for name in plan.training.report_to:
        if name in ("none", "all"):
            continue
        if name not in TRACKERS:
            yield Problem(
                f"report_to: unknown tracker {name!r}", where, f"write none, all, or one of {', '.join(TRACKERS)}"
            )
        elif find_spec(TRACKERS[name][0]) is None:
            yield Problem(f"report_to: {name} is not installed", where, _hint(name))
        elif wrong := _unsupported_version(TRACKERS[name][1]):
            yield Problem(f"report_to: transformers does not support {name} {wrong}", where, _hint(name))


def _hint(name: str) -> str:
    package = TRACKERS[name][1]
    quoted = f'"{package}"' if "<" in package else package  # unquoted, a shell reads < as a redirection
    return f"pip install {quoted}, or write report_to: none"


def _unsupported_version(requirement: str) -> str:
    """The installed version if the requirement excludes it, else empty."""
    name, limited, _ = requirement.partition("<")
    if not limited:
        return ""
    installed = version(name)
    return "" if Requirement(requirement).specifier.contains(installed, prereleases=True) else installed
