"""Trainers of `transformers` as gr2 runs them: steps fixed in advance, whole checkpoints, our progress bar.

A trainer that was killed, even while it wrote a checkpoint, goes on from the last whole one and ends with the weights
and the figures of a trainer that nobody disturbed. Nothing is reported to anybody.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from gr2.artifact import file_digest, write_json
from gr2.errors import ArtifactError, ConfigError
from gr2.progress import Bar, track
from gr2.quiet import without_bars
from gr2.training.loop.batches import epoch_batches
from gr2.training.loop.optimisation import refuse_divergence, refuse_lost_weights

__all__ = ["Figures", "Resumable", "checkpointing", "epoch_means", "grouped_steps", "tracker_callbacks"]

# Of one step: a name to the sum of a loss over tokens, and the number of these.
Figures: TypeAlias = dict[str, tuple[float, float]]
HISTORY, FILES, STAGING = "history.json", "files.json", ".writing"
ENDED = "ended.json"


def grouped_steps(lengths: NDArray[np.integer], batch: int, epochs: int, seed: int) -> list[list[int]]:
    """The rows of every batch of a training, epoch after epoch: each row once an epoch, `batch` of similar lengths."""
    return [
        rows.tolist()
        for epoch in range(epochs)
        for rows in epoch_batches(lengths, batch, np.random.default_rng([seed, epoch]))
    ]


def epoch_means(history: Sequence[Figures], epochs: int) -> list[dict[str, float]]:
    """Each epoch's mean loss a token, by name; the history is divided into equal runs of steps."""
    means = []
    for steps in np.array_split(np.arange(len(history)), max(1, epochs)):
        names = sorted({name for step in steps for name in history[step]})
        sums = {name: np.sum([history[step].get(name, (0.0, 0.0)) for step in steps], axis=0) for name in names}
        means.append({name: float(total / max(1.0, count)) for name, (total, count) in sums.items()})
    return means


def tracker_callbacks(tracker: str, folder: Path) -> tuple[list[str], list[TrainerCallback]]:
    """What `report_to` and `callbacks` of a trainer become for a tracker's name; "none" tracks nothing.

    TensorBoard's files go to `folder`. Raises ConfigError on a name that `transformers` does not know.
    """
    if tracker == "none":
        return [], []
    if tracker != "tensorboard":
        if tracker not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError(f"tracker {tracker!r} is not one that transformers knows: none, {known}")
        return [tracker], []
    callback = TensorBoardCallback()  # type: ignore[no-untyped-call]
    # It opens its files when the training begins, and in the first process only.
    callback.logging_dir = str(folder)
    return [], [callback]


def checkpointing(arguments: type[TrainingArguments], *, on: bool) -> dict[str, Any]:
    """The argument by which activations are computed twice, as the installed version of `transformers` calls it."""
    names = {field.name for field in dataclasses.fields(arguments)}
    return {next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names): on}


class Resumable(Trainer):
    """What goes before `Trainer`, or a trainer of TRL, among a class's bases.

    Its arguments must train one epoch over a data set whose rows are the batches, in order (`grouped_steps`), or
    `max_steps` of batches that do not come from the data set, with `save_strategy="no"`: checkpoints are written every
    `checkpoint_seconds`, and after the last step. The last step is that at which `seconds` are over, if they are not 0.
    `compute_loss` says with `count` what belongs to `history`.
    """

    def __init__(
        self, *arguments: Any, stage: str, checkpoint_seconds: float, seconds: float = 0.0, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.remove_callback(PrinterCallback)
        self.add_callback(_AfterStep(self._stepped))
        self.stage, self.checkpoint_seconds, self.seconds = stage, checkpoint_seconds, seconds
        self.history: list[Figures] = []
        self._sums: dict[str, Tensor] = {}
        self._staging: Path | None = None
        self._began = self._saved = time.monotonic()
        self._tokens = self._logged = 0
        self._bar: Bar | None = None

    def fit(self, description: str) -> None:
        """Train from the last whole checkpoint in `output_dir`, or from the start, to the end.

        Where the clock has ended it once, that is the end for good. Raises Gr2Error if a loss is not finite,
        ArtifactError if the checkpoint is damaged.
        """
        last = self._last_checkpoint()
        if last is not None:
            _refuse_damaged(last)
            read = json.loads((last / HISTORY).read_text(encoding="utf-8"))
            self.history = [{name: (total, count) for name, (total, count) in step.items()} for step in read]
        ended = Path(str(self.args.output_dir)) / ENDED
        if ended.exists():
            self.args.max_steps = int(json.loads(ended.read_text(encoding="utf-8"))["step"])
        batches = len(self.get_train_dataloader())
        steps = self.args.max_steps if self.args.max_steps > 0 else -(-batches // self.args.gradient_accumulation_steps)
        stream = None if self.accelerator.is_main_process else io.StringIO()
        with track(steps, description, unit="steps", start=len(self.history), stream=stream) as bar:
            self._bar, self._logged = bar, len(self.history)
            self._began = self._saved = time.monotonic()
            self.train(resume_from_checkpoint=str(last) if last else None)

    def count(self, losses: Mapping[str, tuple[Tensor, Tensor]], tokens: Tensor) -> None:
        """Add a batch to the step's figures: sums of losses with their numbers of tokens, and all tokens read."""
        for name, pair in (*losses.items(), ("tokens", (tokens, tokens.new_ones(())))):
            values = torch.stack([value.detach().double() for value in pair])
            self._sums[name] = self._sums[name] + values if name in self._sums else values

    def _stepped(self, state: TrainerState, control: TrainerControl) -> None:
        names = sorted(self._sums)
        sums = self.accelerator.reduce(torch.stack([self._sums[name] for name in names]), "sum").tolist()
        self._sums = {}
        figures = dict(zip(names, map(tuple, sums), strict=True))
        tokens, _ = figures.pop("tokens")
        self.history.append(figures)
        self._tokens += int(tokens)
        means = {name: total / max(1.0, count) for name, (total, count) in figures.items()}
        refuse_divergence(self.stage, f"the loss of step {state.global_step}", *means.values())
        # What comes next may be answers, not a loss.
        assert self.model is not None
        refuse_lost_weights(self.stage, state.global_step, self.model)
        if self._bar is not None:
            rate = self._tokens / max(1e-9, time.monotonic() - self._began)
            self._bar.advance(**{"tokens/s": round(rate), **means})
        last = state.global_step >= state.max_steps
        if self.seconds and not last and self._passed(self._began, self.seconds):
            last = control.should_training_stop = True
            if self.accelerator.is_main_process:
                write_json(Path(str(self.args.output_dir)) / ENDED, {"step": state.global_step})
        control.should_save = last or self._due()

    def _due(self) -> bool:
        """Whether to write a checkpoint now."""
        return self._passed(self._saved, self.checkpoint_seconds)

    def _passed(self, since: float, seconds: float) -> bool:
        """Whether so much time has passed: the first rank's clock decides for all."""
        late = time.monotonic() - since >= seconds
        if self.args.world_size > 1:
            flag = torch.tensor([float(late)], device=self.args.device)
            distributed.broadcast(flag, src=0)
            late = bool(flag.item())
        return late

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean losses since the last log to what the tracker gets."""
        new = self.history[self._logged :]
        if new:
            logs.update(epoch_means(new, 1)[0])
            self._logged = len(self.history)
        super().log(logs, start_time)

    def create_model_card(self, *_arguments: Any, **_options: Any) -> None:
        """Write none: an artefact says what made it."""

    def _send_telemetry(self) -> None:
        """Send nothing, where TRL would."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write the checkpoint aside and move it into place, so that a kill leaves the old one or the new one."""
        home = Path(str(self.args.output_dir))
        self._staging = home / STAGING
        if self.args.should_save:
            shutil.rmtree(self._staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with without_bars():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        staging, self._staging = self._staging, None
        if self.args.should_save:
            made = next(staging.glob("checkpoint-*"))
            (made / "training_args.bin").unlink(missing_ok=True)
            write_json(made / HISTORY, self.history)
            write_json(made / FILES, {path.name: file_digest(path) for path in made.iterdir() if path.is_file()})
            older = list(home.glob("checkpoint-*"))
            shutil.rmtree(home / made.name, ignore_errors=True)
            made.rename(home / made.name)
            for folder in older:
                if folder.name != made.name:
                    shutil.rmtree(folder)
            staging.rmdir()
        self._saved = time.monotonic()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        strangers = [*(set(load_result.missing_keys) - set(tied)), *load_result.unexpected_keys]
        if strangers:
            raise ArtifactError(
                f"{self.args.output_dir}: the checkpoint is of another model ({min(strangers)}, ...); "
                "delete it to start again"
            )

    def _last_checkpoint(self) -> Path | None:
        found = list(Path(str(self.args.output_dir)).glob("checkpoint-*"))
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _refuse_damaged(checkpoint: Path) -> None:
    """Raise ArtifactError if a file is not as it was written: without one, some trainers start anew in silence."""
    try:
        digests = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
        damaged = [name for name, digest in digests.items() if file_digest(checkpoint / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{checkpoint}: a damaged checkpoint: {error}; delete it to start again") from error
    if damaged:
        raise ArtifactError(
            f"{checkpoint / damaged[0]}: altered since it was written; delete {checkpoint} to start again"
        )


class _AfterStep(TrainerCallback):
    def __init__(self, call: Callable[[TrainerState, TrainerControl], None]) -> None:
        self.call = call

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_options: Any,
    ) -> TrainerControl:
        self.call(state, control)
        return control
