"""Experiment trackers by transformers' names, and the packages that they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec

from ftcore.checks import place
from ftcore.errors import Problem
from ftcore.plan import Plan

TRACKERS: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
    "swanlab": ("swanlab", "swanlab"),
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
"""Name in ``report_to`` -> module, and what pip installs. ``none`` and ``all`` (what is installed) are names too."""


def problems(plan: Plan) -> Iterable[Problem]:
    """Trackers that do not exist, or whose package is not installed."""
    where = place(plan, "report_to")
    for name in plan.training.report_to:
        if name in ("none", "all"):
            continue
        if name not in TRACKERS:
            yield Problem(f"report_to: there is no tracker {name!r}", where, f"write none, {', '.join(TRACKERS)}")
        elif find_spec(TRACKERS[name][0]) is None:
            hint = f"pip install {TRACKERS[name][1]}, or write report_to: none"
            yield Problem(f"report_to: {name} is not installed", where, hint)
