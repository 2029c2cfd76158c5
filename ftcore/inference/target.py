"""Selects the model of a command from a training file, a model, an adapter or the output folder of a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftcore.config.planner import make_plan
from ftcore.config.reader import read_settings
from ftcore.errors import Problem, UsageError
from ftcore.models.adapters import other_bases
from ftcore.models.resolve import HUB_ID
from ftcore.models.trained_run import Trained, base_of, read_trained
from ftcore.utils.hashing import sha256_of
from ftcore.utils.run_status import FAILED, RUNNING, STOPPED, lives, notice, read_status

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftcore.api.plan import Plan

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ftcore.api.components import Generator, Judge
    from ftcore.api.plan import Plan
    from ftcore.api.registry import Plugins

# Data and training options of a training file are ignored: their files may be gone.
UNUSED: dict[str, Any] = {
    "dataset": (),
    "eval_dataset": (),
    "do_train": False,
    "do_eval": False,
    "do_predict": False,
    "eval_strategy": "no",
    "val_size": 0.0,
    "resume_from_checkpoint": "never",
    "deepspeed": None,
    "fsdp": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A plan for inference, and the run that trained its model or adapter, if ft trained it.

    Args:
        plan: the plan of the model.
        trained: the run.
        notes: lines for the terminal about these runs.
    """

    plan: Plan
    trained: Trained | None = None
    notes: tuple[str, ...] = ()

    def load(self, *, force: bool = False) -> Generator:
        """The generator.

        Args:
            force: whether to accept a template other than that of training.

        Raises:
            UsageError: the template differs, or the engine cannot load the plan.
        """
        self.check(force=force)
        return self.plan.engine.component.load(self.plan)

    def judge(self, *, force: bool = False) -> Judge:
        """Loads a reward model; see `load`."""
        self.check(force=force)
        return self.plan.engine.component.judge(self.plan)

    def check(self, *, force: bool = False) -> None:
        """Raises UsageError if the template differs from that of training; also warns, see `warn`."""
        self.warn()
        if self.trained and self.trained.sha256 and not force:
            check_template(self.plan, self.plan.plugins.hook.ft_load_tokenizer(plan=self.plan), self.trained)

    def warn(self) -> None:
        """Warns about runs that did not finish, and adapters on other weights than those they were trained on."""
        for line in (*self.notes, *other_bases(self.plan)):
            log.warning("warning: %s", line)

    def __str__(self) -> str:
        model = self.plan.model
        adapters = "".join(f" + {name}" for name in model.adapter_name_or_path)
        template = self.plan.template.component.name if self.plan.template else "the tokenizer's own"
        return f"{model.model_name_or_path}{adapters}, template {template}"


def find_target(
    file: str | Path | None,
    *,
    model: str | None = None,
    adapters: Sequence[str] = (),
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
) -> Target:
    """Selects the model for inference.

    With a training file, it is the result of its run in ``output_dir``, or the base model if the run has not finished.
    ``model`` and ``adapters`` override the file. Template, system message and an adapter's base model come from the
    manifest of the training run, unless the file or the command line sets them.

    Raises:
        UsageError: no model is given, or the names or options are wrong.
    """
    model, adapters, overrides = _named(model, adapters, overrides)
    written = {name: setting.value for name, setting in read_settings(file, overrides).items()}
    written = {name: value for name, value in written.items() if value is not None}
    values: dict[str, Any] = {name: value for name, value in UNUSED.items() if name in written}
    if file is None and not model and not adapters:
        raise UsageError("no model is given; write a training file, --model or --adapter")
    named: dict[str, Any] = {"model_name_or_path": model, "adapter_name_or_path": tuple(adapters)}
    named = {name: value for name, value in named.items() if value}
    notes: list[str] = []
    if file is not None and not named:
        own = make_plan(file, overrides, plugins=plugins, values=values)
        named = _left_by(own)
        notes += [] if named else unfinished(own.output_dir)
    names = written | named
    trained = _trained(names.get("adapter_name_or_path")) or _trained(names.get("model_name_or_path"))
    known = _from_training(trained, names)
    values |= named | {name: value for name, value in known.items() if name not in written}
    plan = make_plan(file, overrides, plugins=plugins, values=values)
    for name in (*plan.model.adapter_name_or_path, str(plan.model.model_name_or_path)):
        notes += unfinished(Path(name).expanduser(), alone=False)
    return Target(plan=plan, trained=trained, notes=tuple(dict.fromkeys(notes)))


def unfinished(folder: Path, *, alone: bool = True) -> list[str]:
    """A warning about a run that did not finish; empty if it did, or if it is still running.

    Args:
        folder: output folder of a run, or one of its checkpoints.
        alone: whether the line also says that the base model is used.
    """
    folder = folder.parent if folder.name.startswith("checkpoint-") else folder
    manifest = read_status(folder)
    if (status := manifest.get("status")) not in (RUNNING, STOPPED, FAILED):
        return []
    if status == RUNNING and not alone and lives(folder, manifest):
        return []  # a checkpoint of a running run
    line = notice(folder)
    if status != RUNNING:
        cause = f": {manifest['cause']}" if manifest.get("cause") else ""
        line = f"{folder}: the run {'was stopped' if status == STOPPED else 'failed'}{cause}"
    return [f"{line}; the base model is used without the trained weights"] if alone and line else [line] if line else []


def _named(
    model: str | None, adapters: Sequence[str], overrides: Sequence[str]
) -> tuple[str | None, list[str], list[str]]:
    """Treats ``model_name_or_path=M`` and ``adapter_name_or_path=A`` as --model and --adapter."""
    adapters, rest = list(adapters), []
    for word in overrides:
        name, _, value = word.partition("=")
        if name == "model_name_or_path":
            model = model or value
        elif name == "adapter_name_or_path":
            adapters = adapters or _list(value)
        else:
            rest.append(word)
    return model, adapters, rest


def _from_training(trained: Trained | None, names: Mapping[str, Any]) -> dict[str, Any]:
    """Options from the manifest of the training run, or from the adapter's configuration."""
    known = trained.values() if trained else {}
    adapters = _list(names.get("adapter_name_or_path"))
    if len(adapters) > 1:
        known.pop("adapter_name_or_path", None)  # the user names the adapters below
    if "model_name_or_path" in names:
        known = {name: value for name, value in known.items() if name not in ("model_name_or_path", "model_revision")}
    elif adapters and "model_name_or_path" not in known:
        known |= _base(adapters[-1])
    return known


def _base(adapter: str) -> Mapping[str, Any]:
    folder = Path(adapter).expanduser()
    if not folder.is_dir() and not HUB_ID.fullmatch(adapter):
        raise UsageError(Problem(f"there is no adapter {adapter!r}", hint="write a folder or a hub id"))
    if base := base_of(folder):
        return base
    raise UsageError(Problem(f"adapter {adapter} does not name its base model", hint="add --model"))


def _left_by(plan: Plan) -> dict[str, Any]:
    """Options that select the result of the plan's run in ``output_dir``; empty if it has not finished."""
    folder = plan.output_dir
    trained = read_trained(folder) if folder.is_dir() else None
    if trained is None or not trained.finished:
        return {}
    if not trained.adapter:
        return {"model_name_or_path": str(folder), "adapter_name_or_path": ()}
    return {"adapter_name_or_path": (*trained.base_adapters, str(folder))}


def _list(names: Any) -> list[str]:
    """Splits ``a,b`` into a list; a list is kept."""
    parts = names.split(",") if isinstance(names, str) else names or ()
    return [name for part in parts if (name := str(part).strip())]


def _trained(names: Any) -> Trained | None:
    """The run that wrote the last of these folders."""
    if not (found := _list(names)):
        return None
    folder = Path(found[-1]).expanduser()
    return read_trained(folder) if folder.is_dir() else None


def check_template(plan: Plan, tokenizer: PreTrainedTokenizerBase, trained: Trained) -> None:
    """Raises an error for a template that differs from that of training.

    The comparison ignores the default system message.

    Raises:
        UsageError: with both templates.
    """
    from ftcore.data.chat_template.renderer import Renderer

    system = trained.values().get("default_system")
    same = replace(plan, data=plan.data.model_copy(update={"default_system": system}))
    if trained.sha256 == sha256_of():
        return  # trained on plain text
    source = Renderer.from_plan(same, tokenizer).source
    if sha256_of(source) == trained.sha256:
        return
    used = plan.template.full_name if plan.template else "the tokenizer's own"
    was = trained.template or "the tokenizer's own"
    what = f"template {used} differs from that of {trained.folder}"
    hint = f"the run used {was}" if was != used else "its source has changed since training"
    where = plan.options["template"].origin if "template" in plan.options else ""
    raise UsageError(Problem(what, where if where != "default" else "", f"{hint}; --force uses it anyway"))
