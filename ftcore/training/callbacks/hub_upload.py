"""Uploads to the Hugging Face hub: with checkpoints and at the end of a run.

A failed upload never ends training. A hub that is not reachable at the start is tried again at the end. Only a token
without write access ends the run before its first step.
"""

from __future__ import annotations

import glob
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback

from ftcore.api.plan import Plan
from ftcore.config.validation.hub import repository, token
from ftcore.data.pipeline.quarantine import FILE as QUARANTINE
from ftcore.errors import RunError
from ftcore.utils.ownership import BACKUP, LOCK, RUN_LOG, foreign_files

OF_RUNS = ("_*", ".tmp-*", "checkpoint-*", LOCK, QUARANTINE, RUN_LOG, f"*{BACKUP}")
"""Files of a run's folder that are not uploaded, nor is anything that ft did not write. Quarantined rows, and logs that
quote rows, may contain private data."""
STATES = (
    "MANIFEST.json",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "progress*",
    "extra*",
    "random-*",
    "trainer_state.json",
)
"""Files of a checkpoint besides weights and tokenizer."""
_REFUSED = (401, 403)


class HubUploadCallback(TrainerCallback):
    """One run's uploads, by its first process.

    Args:
        plan: of the run.
        info: takes a line for the user.
    """

    def __init__(self, plan: Plan, info: Callable[[str], None]) -> None:
        self.plan, self.options, self.info = plan, plan.hub, info
        self.api = HfApi(token=token(plan))
        self.repository = ""
        self.running: list[tuple[str, Path, Future[Any]]] = []

    # ---- when the trainer says so ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            try:
                self._make_repository()
            except Exception as error:
                if refused(error):
                    raise RunError(f"push_to_hub: the hub refuses {repository(self.plan)}: {_cause(error)}") from error
                self.info(f"push_to_hub: {_cause(error)}; the run continues, and tries the upload again at its end")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.options.hub_strategy != "end" and self.repository:
            self._checkpoint(self.plan.output_dir / f"checkpoint-{state.global_step}")

    # ---- uploads ----

    def _make_repository(self) -> None:
        url = self.api.create_repo(repository(self.plan), private=self.options.hub_private_repo, exist_ok=True)
        if self.options.hub_revision is not None:
            self.api.create_branch(url.repo_id, branch=self.options.hub_revision, exist_ok=True)
        self.repository = url.repo_id

    def _checkpoint(self, folder: Path) -> None:
        self._settle(wait=False)
        if self.running and not self.options.hub_always_push:
            self.info(
                f"{folder.name} is not uploaded, because the upload of {self.running[0][0]} is still running; "
                "hub_always_push: true uploads every checkpoint"
            )
            return
        kept = _linked(folder)
        strategy = self.options.hub_strategy
        self._start(folder.name, kept, ignore_patterns=list(STATES))
        if strategy in ("checkpoint", "all_checkpoints"):
            name = "last-checkpoint" if strategy == "checkpoint" else folder.name
            self._start(f"{folder.name} as {name}", kept, path_in_repo=name, delete_patterns="*")

    def _start(self, what: str, folder: Path, **options: Any) -> None:
        future = self.api.upload_folder(
            repo_id=self.repository,
            folder_path=folder,
            commit_message=f"Training in progress, {what}",
            revision=self.options.hub_revision,
            run_as_future=True,
            **options,
        )
        self.running.append((what, folder, future))

    def _settle(self, *, wait: bool) -> None:
        """Reports failed uploads, and removes those that have ended."""
        left = []
        for what, folder, future in self.running:
            if not wait and not future.done():
                left.append((what, folder, future))
            elif (error := future.exception()) is not None:
                self.info(f"{what} could not be uploaded: {_cause(error)}; the run continues")
        still = {folder for _, folder, _ in left}
        for folder in {folder for _, folder, _ in self.running} - still:
            shutil.rmtree(folder, ignore_errors=True)
        self.running = left

    def finish(self) -> None:
        """Uploads the run's folder.

        Raises:
            RunError: the upload failed; the folder is complete, and the message has the command to upload it later.
        """
        folder = self.plan.output_dir
        self._settle(wait=True)
        try:
            if not self.repository:
                self._make_repository()
            self.api.upload_folder(
                repo_id=self.repository,
                folder_path=folder,
                commit_message="End of training",
                revision=self.options.hub_revision,
                ignore_patterns=[*OF_RUNS, *_patterns(foreign_files(folder))],
            )
        except Exception as error:
            name = self.repository or repository(self.plan)
            later = f"hf upload {name} {shlex.quote(str(folder))} --exclude 'checkpoint-*'"
            raise RunError(
                f"the trained weights in {folder} could not be uploaded to {name}: {_cause(error)}; later run {later}"
            ) from error
        self.info(f"uploaded to {self.repository}")


def _patterns(names: Sequence[str]) -> list[str]:
    """Patterns for files and folders of these names and for the folders' contents."""
    return [pattern for name in names for pattern in (glob.escape(name), f"{glob.escape(name)}/*")]


def refused(error: BaseException) -> bool:
    """Whether the hub denies access."""
    return isinstance(error, HfHubHTTPError) and error.response.status_code in _REFUSED


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _linked(folder: Path) -> Path:
    """A hard-linked copy of a checkpoint, so that the run may delete the checkpoint during the upload."""
    kept = folder.parent / f".tmp-hub-{folder.name}-{os.getpid()}"
    shutil.rmtree(kept, ignore_errors=True)
    try:
        shutil.copytree(folder, kept, copy_function=os.link)
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept)
    return kept
