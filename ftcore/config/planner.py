"""Makes a plan of a user's settings: chooses components, binds options and checks everything at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftcore.api.components import KINDS, Backend, ChatTemplate, Component, DatasetFormat, ModelFamily, OptionGroup
from ftcore.api.option_groups import GROUPS, ModelOptions, TrainingOptions
from ftcore.api.plan import Bound, Plan, RegisteredComponent, Selected
from ftcore.api.registry import Plugins, load
from ftcore.config import backend_selection
from ftcore.config.binding import (
    TRANSFORMERS,
    Binding,
    assign,
    bind,
    bound_options,
    owner_of,
    rename,
    selection_options,
)
from ftcore.config.reader import COMMAND_LINE, Setting, from_mapping, read_settings
from ftcore.config.validation import (
    core as checks,
)
from ftcore.config.validation import (
    evaluation as selection_checks,
)
from ftcore.config.validation import (
    hub,
    lr_schedulers,
    trackers,
)
from ftcore.config.validation import (
    training as training_checks,
)
from ftcore.data.chat_template.template_file import is_template_file, read_template_file
from ftcore.errors import Problem, UsageError, quoted
from ftcore.models.resolve import ResolvedModel, choose_family, resolve_model

SELECTED_KINDS = [kind for kind in KINDS if kind not in (DatasetFormat, ModelFamily)]


def make_plan(
    file: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    plugins: Plugins | None = None,
    values: Mapping[str, Any] | None = None,
) -> Plan:
    """Makes the plan of a file.

    Args:
        file: YAML or JSON; None for none.
        overrides: ``key=value`` words of the command line; they win.
        plugins: used instead of the installed ones.
        values: further settings; they win over the file, and the overrides win over them.

    Raises:
        UsageError: with every problem found.
    """
    plugins = plugins if plugins is not None else load()
    settings = read_settings(file, overrides)
    written = {name for name, setting in settings.items() if setting.where == COMMAND_LINE}
    settings |= from_mapping({k: v for k, v in (values or {}).items() if k not in written}, COMMAND_LINE)
    planner = _Planner(str(file or ""), plugins, settings)
    plan = planner.plan()
    if planner.problems or plan is None:
        raise UsageError(_distinct(planner.problems))
    return plan


@dataclass
class _Planner:
    file: str
    plugins: Plugins
    settings: dict[str, Setting]
    problems: list[Problem] = field(default_factory=list)
    _located: ResolvedModel = field(default_factory=ResolvedModel)
    _device: str = backend_selection.CPU

    def plan(self) -> Plan | None:
        self.settings, problems = rename(self.settings, self.plugins)
        self.problems += problems
        located = self._located = self._locate()
        family = self._family(located)
        if family:
            for name, value in family.component.defaults.items():
                if self._raw(name) is None:
                    self.settings[name] = Setting(name, value, "family")
        chosen = {kind.kind: self._choose(kind, family) for kind in SELECTED_KINDS}
        chosen[ModelFamily.kind] = family
        binding, groups = self._bind({kind: offer for kind, offer in chosen.items() if offer})
        if groups is None or any(chosen[kind.kind] is None for kind in SELECTED_KINDS if kind.kind != "chat_template"):
            return None
        return self._assemble(located, chosen, binding, groups)

    def _raw(self, name: str) -> Any:
        return self.settings[name].value if name in self.settings else None

    def _where(self, name: str) -> str:
        return self.settings[name].where if name in self.settings else self.file

    def _locate(self) -> ResolvedModel:
        name = self._raw("model_name_or_path")
        if not isinstance(name, str) or not name:
            missing = (
                "model_name_or_path is missing" if name is None else f"model_name_or_path: {quoted(name)} is not text"
            )
            hint = "write a folder, a hub id, or a model that a plugin offers"
            self.problems.append(Problem(missing, self._where("model_name_or_path"), hint))
            return ResolvedModel()
        cache = self._raw("cache_dir")
        located, problems = resolve_model(
            name, self.plugins, self._where("model_name_or_path"), cache if isinstance(cache, str) else None
        )
        self.problems += problems
        return located

    def _is_not_downloaded(self) -> bool:
        """Whether the model is on the hub and not on this machine."""
        return self._located.source is None and self._located.config is None

    def _family(self, located: ResolvedModel) -> RegisteredComponent[ModelFamily] | None:
        if named := self._raw(ModelFamily.option):
            return self._find(ModelFamily, named)
        name = self._raw("model_name_or_path")
        where = self._where("model_name_or_path")
        family, problems = choose_family(located, str(name), self.plugins, where)
        self.problems += problems
        return family

    def _find(self, kind: type[Component], name: Any) -> Any:
        where = self._where(kind.option)
        if not isinstance(name, str):
            self.problems.append(Problem(f"{kind.option}: {quoted(name)} is not text", where))
            return None
        try:
            offer = self.plugins.find(kind, name, where)
            resolved = offer.component.resolve({key: setting.value for key, setting in self.settings.items()})
            return offer if resolved == offer.component.name else self.plugins.find(kind, resolved, where)
        except UsageError as error:
            self.problems += error.problems
            return None

    def _choose(self, kind: type[Component], family: RegisteredComponent[ModelFamily] | None) -> Any:
        name = self._raw(kind.option)
        if kind is ChatTemplate and is_template_file(name):
            return self._template_file(name)
        if name is not None:
            found = self._find(kind, name)
            return self._backend(found) if kind is Backend and found else found
        if claims := self._claims(kind):
            return self._claimed(kind, claims)
        if kind is Backend:
            return self._backend(None)
        if kind is ChatTemplate:
            name = family.component.template if family else None
            return self._find(kind, name) if name else None
        try:
            offer = self.plugins.default(kind, self.file)
        except UsageError as error:
            self.problems += error.problems
            return None
        return self._find(kind, offer.full_name)

    def _backend(self, named: RegisteredComponent[Backend] | None) -> RegisteredComponent[Backend] | None:
        on_cpu, where = bool(self._raw("use_cpu")), self._where(Backend.option)
        try:
            if named is None:
                offer, self._device = backend_selection.by_device(self.plugins, on_cpu=on_cpu, where=where)
            else:
                offer, self._device = backend_selection.by_name(self.plugins, named, on_cpu=on_cpu, where=where)
        except UsageError as error:
            self.problems += error.problems
            return None
        return offer

    def _template_file(self, name: str) -> RegisteredComponent[ChatTemplate] | None:
        try:
            return read_template_file(name, self._where(ChatTemplate.option))
        except UsageError as error:
            self.problems += error.problems
            return None

    def _claims(self, kind: type[Component]) -> list[tuple[RegisteredComponent[Any], str]]:
        """Components of a kind that an option of the file selects, each with that option."""
        return [
            (offer, written[0])
            for offer in self.plugins.of(kind)
            if (written := [name for name in offer.component.selected_by if self._raw(name) is not None])
        ]

    def _claimed(self, kind: type[Component], claims: Sequence[tuple[RegisteredComponent[Any], str]]) -> Any:
        offer, option = claims[0]
        if len(claims) == 1:
            return offer
        names = [offer.full_name for offer, _ in claims]
        message = f"{option} selects more than one {kind.kind.replace('_', ' ')}: {' and '.join(names)}"
        self.problems.append(Problem(message, self._where(option), f"write {kind.option}: {' or '.join(names)}"))
        return None

    def _bind(self, chosen: Mapping[str, RegisteredComponent[Any]]) -> tuple[Binding, dict[str, OptionGroup] | None]:
        unused = _unused(chosen, unknown=self._is_not_downloaded())
        active: dict[str, type[OptionGroup]] = {name: group for name, group in GROUPS.items() if name not in unused}
        for kind, offer in chosen.items():
            active[owner_of(kind, offer.component.name)] = offer.component.Options
        selecting = selection_options()
        binding = assign([s for s in self.settings.values() if s.name not in selecting], active, self.plugins)
        self.problems += binding.problems
        groups: dict[str, OptionGroup] = {name: GROUPS[name]() for name in unused}
        complete = True
        for owner, group in active.items():
            options, problems = bind(owner, group, binding.values[owner])
            self.problems += problems
            if options is None:
                complete = False
            else:
                groups[owner] = options
        return binding, groups if complete else None

    def _assemble(
        self,
        located: ResolvedModel,
        chosen: Mapping[str, RegisteredComponent[Any] | None],
        binding: Binding,
        groups: dict[str, OptionGroup],
    ) -> Plan:
        def selected(kind: str) -> Any:
            if (offer := chosen[kind]) is None:
                return None
            options = groups[owner_of(kind, offer.component.name)]
            component = offer.component.configured(options)
            return Selected(component=component, full_name=offer.full_name, version=offer.version, options=options)

        core: Any = {owner: groups[owner] for owner in GROUPS}
        core["training"] = self._with_output_dir(core["training"], core["model"], chosen)
        plan = Plan(
            file=self.file,
            stage=selected("stage"),
            method=selected("method"),
            optimizer=selected("optimizer"),
            launcher=selected("launcher"),
            engine=selected("inference_engine"),
            backend=selected("backend"),
            family=selected("model_family"),
            template=selected("chat_template"),
            **core,
            transformers={
                name: setting.value
                for name, setting in binding.values[TRANSFORMERS].items()
                if setting.value is not None
            },
            plugins=self.plugins,
            device=self._device,
            source=located.source,
            config=located.config,
            options=self._options(chosen, groups | core, binding),
            ignored=tuple(binding.ignored),
        )
        return self._complete(plan)

    def _options(
        self, chosen: Mapping[str, RegisteredComponent[Any] | None], groups: Mapping[str, OptionGroup], binding: Binding
    ) -> dict[str, Bound]:
        options: dict[str, Bound] = {}
        for option, kind in selection_options().items():
            offer = chosen[kind]
            selecting = [option, *(offer.component.selected_by if offer else ())]
            written = [self._where(name) for name in selecting if self._raw(name) is not None]
            origin = written[0] if written else "family" if kind == ChatTemplate.kind and offer else "default"
            options[option] = Bound(offer.full_name if offer else None, "selection", origin)
        active = {
            owner: group
            for owner, group in groups.items()
            if owner not in _unused(chosen, unknown=self._is_not_downloaded())
        }
        return options | bound_options(active, binding)

    def _with_output_dir(
        self, training: TrainingOptions, model: ModelOptions, chosen: Mapping[str, RegisteredComponent[Any] | None]
    ) -> TrainingOptions:
        if training.output_dir:
            return training
        name = re.sub(r"[^\w.-]+", "-", Path(str(model.model_name_or_path)).name) or "model"
        parts = [offer.component.name for kind in ("method", "stage") if (offer := chosen[kind])]
        return training.model_copy(update={"output_dir": str(Path("saves", name, *parts))})

    def _complete(self, plan: Plan) -> Plan:
        from ftcore.data.sources.resolve import resolve

        data = plan.data
        datasets, problems = resolve(data.dataset, dataset_dir=data.dataset_dir, where=self._where("dataset"))
        self.problems += problems
        evaluation, problems = resolve(
            data.eval_dataset, dataset_dir=data.dataset_dir, where=self._where("eval_dataset"), evaluation=True
        )
        self.problems += problems
        precision, problems = checks.precision(plan)
        self.problems += problems
        plan = replace(plan, datasets=datasets, eval_datasets=evaluation, precision=precision)
        plan = checks.with_memory(plan)
        plan = replace(plan, warnings=tuple(checks.warnings(plan)))
        plan = replace(plan, ignored=(*plan.ignored, *training_checks.notes(plan)))
        for check in (
            checks.check,
            training_checks.problems,
            hub.problems,
            lr_schedulers.problems,
            trackers.problems,
            selection_checks.problems,
        ):
            self.problems += check(plan)
        for problems in self.plugins.hook.ft_check_plan(plan=plan):
            self.problems += problems or ()
        return plan if self.problems else replace(plan, unknown=tuple(checks.unknown(plan)))


def _unused(chosen: Mapping[str, Any], *, unknown: bool) -> tuple[str, ...]:
    """Option groups without effect on this model. No model accepts rows with videos yet.

    Args:
        chosen: kind -> registered component.
        unknown: whether it is not known yet what the model reads.
    """
    family = chosen.get(ModelFamily.kind)
    if family is None and unknown:
        return ("videos",)
    return ("videos",) if family is not None and family.component.media else ("media", "videos")


def _distinct(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once, in the order of the file's lines."""

    def line(problem: Problem) -> int:
        number = problem.where.rpartition(":")[2]
        return int(number) if number.isdigit() else 0

    return sorted(dict.fromkeys(problems), key=line)
