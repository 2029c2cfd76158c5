"""Holds every template against its oracles.

``python tests/templates/oracles.py [--write] [--docs] [--diff] [NAME ...]``

Needs /work/shared, /work/oracles and /work/oracles-mc, which the project is cloned without; an oracle that is not there
is named and left out. ``--write`` writes the golden renderings of the templates that agree, ``--docs``
docs/templates.md, ``--diff`` shows each difference whole.
"""

from __future__ import annotations

import argparse
import difflib
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import efforts
import jinja2
import makers_readers
import readers
from conversations import Case
from documentation import PAGE, page
from harness import BY_NAME, Rendering, cases, ours, render, write_golden
from oracle_map import ENTRIES, LEFT_OUT, reason

from ftcore.api.components import ChatTemplate

FOLDERS = {
    "shared": Path("/work/shared/oracle/templates"),
    "trl": readers.TRL,
    "xinference": Path("/work/oracles/more/xinference"),
    "llamacpp": Path("/work/oracles/more/llamacpp"),
    "github": Path("/work/oracles/more/github"),
}
FSCHAT = Path("/work/oracles/fastchat/conversation.py")

Reader = Callable[[str, Case, dict[str, str]], tuple[str, str]]
"""Oracle's name, case, special tokens -> text, prompt. Raises `jinja2.TemplateError` where the oracle refuses."""


def _published(folder: Path, name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    source = (folder / name).read_text(encoding="utf-8")
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


def _in_parts(folder: Path, name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """A template that takes contents as parts only, as those of processors do."""
    messages = [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in case.messages
    ]
    return _published(folder, name, replace(case, messages=messages), tokens)


def _fschat(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """A conversation of fschat's; its tokenizer puts the begin-of-sequence token in front."""
    conversation = runpy.run_path(str(FSCHAT))["get_conv_template"](name)
    start = tokens.get("bos_token", "")
    for message in case.messages[:-1]:
        if message["role"] == "system":
            conversation.set_system_message(message["content"])
        else:
            conversation.append_message(conversation.roles[message["role"] == "assistant"], message["content"])
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    conversation.update_last_message(case.messages[-1]["content"])
    return start + conversation.get_prompt(), start + prompt


def _transformers(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """The default template of a processor of transformers."""
    from transformers.models.qwen2_audio.processing_qwen2_audio import Qwen2AudioProcessor

    processors = {"qwen2_audio": Qwen2AudioProcessor}
    source = processors[name].default_chat_template.fget(None)
    return render(source, case, tokens)[0], render(source, case, tokens, prompt=True)[0]


def _fschat_closed(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """The same, where the next turn's begin-of-sequence token is taken for the end of the last one."""
    text, prompt = _fschat(name, case, tokens)
    return text.removesuffix(tokens["bos_token"]), prompt


def _fschat_ended(name: str, case: Case, tokens: dict[str, str]) -> tuple[str, str]:
    """The same, with an end-of-sequence token after the conversation, which fschat never teaches."""
    text, prompt = _fschat(name, case, tokens)
    return text + tokens["eos_token"], prompt


READERS: dict[str, Reader] = (
    {kind: partial(_published, folder) for kind, folder in FOLDERS.items()}
    | {
        "trl-parts": partial(_in_parts, FOLDERS["trl"]),
        "fschat": _fschat,
        "fschat-closed": _fschat_closed,
        "fschat-ended": _fschat_ended,
        "transformers": _transformers,
        "hy3": efforts.hy3,
        "seed": efforts.seed,
        "closed-by-next": readers.closed_by_next,
        "granite": readers.granite,
        "mistral": readers.mistral,
        "mistral-common": readers.mistral_common,
        "parsed": readers.parsed,
        "processor": readers.processor,
        "thinking": readers.thinking,
        "thoughts-in-parts": readers.thoughts_in_parts,
        "tools-of-model-card": readers.tools_of_model_card,
        "with-empty-thought": readers.with_empty_thought,
        "without-opening": readers.without_opening,
    }
    | makers_readers.READERS
)


def published(oracle: str, case: Case, tokens: dict[str, str]) -> Rendering:
    """What an oracle makes of a case."""
    kind, name = oracle.split("/", 1)
    try:
        text, prompt = READERS[kind](name, case, tokens)
    except (jinja2.TemplateError, TypeError) as error:
        return Rendering(refused=str(error))
    return Rendering((text,), prompt)


def here(oracle: str) -> bool:
    """Whether what an oracle reads is on this machine."""
    kind, name = oracle.split("/", 1)
    if kind in ("fschat", "fschat-closed", "fschat-ended"):
        return FSCHAT.exists()
    if kind == "mistral-common":
        return readers.MISTRAL_COMMON.exists()
    if kind in FOLDERS or name.endswith(".jinja"):
        return any((folder / name).exists() for folder in FOLDERS.values())
    return True


def compare(mine: Rendering, theirs: Rendering) -> dict[str, tuple[str, str]]:
    """What differs: ``""`` for the text or a refusal, ``.prompt`` -> ours and theirs."""
    if mine.refused and theirs.refused:
        return {}
    found = {}
    if mine.text != theirs.text:
        found[""] = (mine.text or f"refused: {mine.refused}", theirs.text or f"refused: {theirs.refused}")
    if mine.prompt != theirs.prompt:
        found[".prompt"] = (mine.prompt, theirs.prompt)
    return found


def check(template: ChatTemplate, renderings: dict[str, Rendering], diff: bool) -> list[str]:
    """The differences that are not listed, and the listed ones that are not there."""
    entry, problems = ENTRIES[template.name], []
    for oracle, differences in entry.get("oracles", {}).items():
        if not here(oracle):
            continue
        used = set()
        for name, case in cases(template).items():
            found = compare(renderings[name], published(oracle, case, entry.get("tokens", {})))
            for part, (mine, theirs) in found.items():
                used |= {pattern for pattern in differences if reason({pattern: "?"}, name + part)}
                if not reason(differences, name + part):
                    problems.append(f"{oracle}: {name}{part} differs{_shown(mine, theirs) if diff else ''}")
        problems += [f"{oracle}: {stale} does not differ" for stale in differences if stale not in used]
    return problems


def _shown(mine: str, theirs: str) -> str:
    lines = difflib.ndiff(theirs.splitlines(keepends=True), mine.splitlines(keepends=True))
    return "\n" + "\n".join(f"      {line[0]} {line[2:]!r}" for line in lines if line[0] != "?")


def unheld() -> list[str]:
    """The files of the folder ``shared`` that nothing is held against."""
    oracles = {oracle.split("/", 1)[1] for entry in ENTRIES.values() for oracle in entry.get("oracles", {})}
    oracles |= {oracle.split("/", 1)[1] for oracle in LEFT_OUT}
    return sorted(file.name for file in FOLDERS["shared"].glob("*.jinja") if file.name not in oracles)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("--write", "--docs", "--diff"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    passed, failed = 0, 0
    for name in arguments.names or BY_NAME:
        if name not in ENTRIES:
            print(f"{name}: not in tests/templates/maps")
            failed += 1
            continue
        template = BY_NAME[name]
        renderings = {case_name: ours(template, case) for case_name, case in cases(template).items()}
        problems = check(template, renderings, arguments.diff)
        there = ENTRIES[name].get("oracles", {})
        oracles = ", ".join(oracle if here(oracle) else f"{oracle} (not here)" for oracle in there) or "no oracle"
        print(f"{name}: {len(renderings)} cases, {oracles}: {'DIFFERS' if problems else 'agrees'}")
        for problem in problems:
            print(f"    {problem}")
        if problems:
            failed += 1
            continue
        passed += 1
        if arguments.write:
            write_golden(name, renderings)
    for name in unheld():
        print(f"shared/{name}: no template is held against it, and LEFT_OUT of oracle_map.py does not say why")
        failed += 1
    if arguments.docs and not failed:
        PAGE.write_text(page(), encoding="utf-8")
    print(f"{passed} agree, {failed} do not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
