"""The reward model of stage ppo: its plan, checks of its base, tokenizer and template, and its memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_plugins.engines.transformers.reward_head import head_problems
from ft_plugins.stages.auxiliary_models import plan_with
from ft_plugins.stages.rm.stage import RewardModelling
from ftcore.config.validation.core import adapter_problems
from ftcore.errors import Problem, UsageError
from ftcore.models.files import base_files, weights_of
from ftcore.models.trained_run import adapter_config, read_trained
from ftcore.resources.memory_model import BYTES, Architecture

if TYPE_CHECKING:
    from ftcore.api.plan import Plan
    from ftcore.data.chat_template.renderer import Renderer

log = logging.getLogger(__name__)

HINT = "write the output_dir of an rm run: an adapter, or a whole model with reward_model_type: full"
PROBES = ("?", "It's 2,048 Wörter long: «ok»\n\n  1. naïve 日本語 🙂")
"""Texts on which tokenizers differ: numbers, accents, quotes, spaces, other scripts."""


def reward_plan(plan: Plan) -> Plan:
    """The plan with the reward model as its model.

    Raises:
        UsageError: no such model.
    """
    options: Any = plan.stage.options
    if options.reward_model_type == "lora":
        folder = Path(options.reward_model).expanduser()
        trained = read_trained(folder) if folder.is_dir() else None
        beneath = trained.base_adapters if trained else ()
        judged = plan_with(plan, "reward_model", None, (*beneath, options.reward_model), "")
    else:
        judged = plan_with(
            plan, "reward_model", options.reward_model, options.reward_model_adapters, "write reward_model_type: lora"
        )
    return replace(judged, stage=replace(plan.stage, component=RewardModelling(name="rm", summary="")))


def problems(plan: Plan) -> Iterable[Problem]:
    """A reward model that does not exist, or has no trained score head."""
    options: Any = plan.stage.options
    try:
        judged = reward_plan(plan)
    except UsageError as error:
        yield from error.problems
        return
    option = "reward_model" if options.reward_model_type == "lora" else "reward_model_adapters"
    adapters = judged.model.adapter_name_or_path
    found = [problem for name in adapters for problem in adapter_problems(plan, option, name)]
    whole = (Path(str(options.reward_model)).expanduser() / "config.json").is_file()
    if found and option == "reward_model" and whole:
        found = [replace(problem, hint="write reward_model_type: full") for problem in found]
    yield from found
    if not found:
        yield from head_problems(judged, plan.where(option if adapters else "reward_model"), HINT, "reward_model")


def check_adapters(plan: Plan) -> None:
    """Checks the reward model's last adapter, fetched from the hub if needed.

    An adapter of another base with the same shapes would load, and return random scores. Two bases are the same if
    their weight files are, as listed in the manifest of the adapter's run. Without a manifest, different names give a
    warning.

    Raises:
        UsageError: it has no score head, or was trained on another base; ``--force`` accepts another base.
    """
    from ft_plugins.methods.adapters import base_name
    from ftcore.models.adapters import adapter_folder

    judged, options = reward_plan(plan), plan.stage.options
    if not judged.model.adapter_name_or_path:
        return
    name = judged.model.adapter_name_or_path[-1]
    option = "reward_model" if options.reward_model_type == "lora" else "reward_model_adapters"  # type: ignore[attr-defined]
    folder = adapter_folder(plan, name)
    here = replace(judged, model=judged.model.model_copy(update={"adapter_name_or_path": (str(folder),)}))
    if problems := list(head_problems(here, plan.where(option), HINT)):
        raise UsageError(problems)
    trained, base = read_trained(folder), str(base_name(judged))
    then, now = (weights_of(files) for files in (trained.files if trained else {}, base_files(judged)))
    if trained and then and now and then != now:
        reason = f"{option} {name} was trained on {trained.model}, whose weights differ from those of {base}"
        if not plan.force:
            hint = "train it on this base, or export it and write reward_model_type: full, or use ft run --force"
            raise UsageError(Problem(reason, plan.where(option), hint))
        log.warning("continuing because of --force: %s", reason)
    elif not (then and now) and (written := adapter_config(folder).get("base_model_name_or_path", base)) != base:
        log.warning("%s %s names %s as its base model, and is loaded on %s", option, name, written, base)


def check_tokens(plan: Plan, renderer: Renderer) -> None:
    """Compares the reward model's tokenizer and chat template with the policy's, whose tokens it scores.

    Those of an adapter are the ones that stage rm saved with it. An adapter without them uses the policy's.

    Raises:
        UsageError: the reward model would read other tokens than it was trained on.
    """
    from ftcore.data.chat_template.renderer import Renderer

    scored = reward_plan(plan)
    if plan.stage.options.reward_model_type == "lora":  # type: ignore[attr-defined]
        folder = scored.model.adapter_name_or_path[-1]
        if not (Path(folder) / "tokenizer.json").is_file():
            return
        model = scored.model.model_copy(update={"model_name_or_path": folder})
        scored = replace(scored, model=model, source=None)
    tokenizer = plan.plugins.hook.ft_load_tokenizer(plan=scored)
    mine, theirs = renderer.tokenizer.get_vocab(), tokenizer.get_vocab()
    differing = sorted(word for word in mine.keys() | theirs.keys() if mine.get(word) != theirs.get(word))
    if differing:
        reason = f"{len(differing):,} tokens have other ids than in the trained model's, such as {differing[0]!r}"
        raise UsageError(_other(plan, "tokenizer", reason))
    if tokenizer.chat_template is not None:
        scored = replace(scored, template=None)
    for text in PROBES:
        read = [probe_ids(one, text) for one in (renderer, Renderer.from_plan(scored, tokenizer))]
        if read[0] != read[1]:
            (place_,) = [number for number in range(len(read[0]) + 1) if read[0][:number] == read[1][:number]][-1:]
            reason = f"tokens of the same conversation differ from token {place_ + 1} on"
            raise UsageError(_other(plan, "tokenizer or chat template", reason))


def _other(plan: Plan, what: str, reason: str) -> Problem:
    hint = "train the reward model with the policy's tokenizer and template"
    return Problem(f"reward_model has a different {what}: {reason}", plan.where("reward_model"), hint)


def probe_ids(renderer: Renderer, answer: str) -> list[int]:
    """Tokens of a short conversation that ends with an answer."""
    from ftcore.api.samples import Chat, Message
    from ftcore.data.tokenization.encoder import encode

    chat = Chat(messages=(Message("user", "?"), Message("assistant", answer)))
    ids: list[int] = encode(renderer.tokenizer, [renderer.render(chat)])[0].ids.tolist()
    return ids


def memory(plan: Plan, *, own_values: bool) -> Mapping[str, int]:
    """Bytes of the reward model, of the value head with its gradient and state, and of a rollout.

    A separate value backbone has as many trained parameters as the policy without its head, with gradients and state.

    A rollout holds keys and values of ``per_device_eval_batch_size`` conversations, and three float32 copies of the
    logits of their next token: the model's, and two that sampling makes of them.
    """
    own = Architecture.from_config(plan.config) if plan.config else None
    if own is None:
        return {}
    options: Any = plan.stage.options
    judged: Architecture | None = own
    if options.reward_model and options.reward_model_type == "full":
        try:
            config = reward_plan(plan).config
        except UsageError:  # reported by the check of the plan
            config = None
        judged = Architecture.from_config(config) if config else None
    elif options.reward_model_type == "api":
        judged = None
    width, rows = BYTES[plan.precision.compute], plan.training.per_device_eval_batch_size
    tokens = plan.data.cutoff_len + plan.generation.max_new_tokens
    states = 8 + plan.optimizer.component.state_bytes
    method, copied = plan.method.component, 0.0
    if own_values:
        chosen = method.effective(plan)
        _, trained = method.count(own, chosen, width)
        trained -= own.vocab_size * own.hidden_size * (method.depth(own, chosen).head and not own.tied)
        copied = trained * (2 * BYTES[plan.precision.trained] + plan.optimizer.component.state_bytes)
    kept = rows * tokens * own.layers * 2 * own.key_size * width
    return {
        "reward model": judged.parameters * width if judged else 0,
        "value head": round((own.hidden_size + 1) * states + copied),
        "rollout": kept + rows * own.vocab_size * 4 * 3,
    }
