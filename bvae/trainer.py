"""The training loop: train, evaluate, save checkpoints, and send events to listeners.

All random numbers depend on the run's seed. A checkpoint contains the state of the generator for posterior
samples. The global generators, which a model may use, are seeded at each step from the run's seed and the
step. A run that continues from a checkpoint is therefore bit-identical to a run without interruption.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bvae.beta_vae import option_weights
from bvae.config import RunConfig
from bvae.corpus import Corpus
from bvae.evaluation import Evaluator
from bvae.evaluation.measure import seed_generators, seeded
from bvae.losses import BetaVAELoss
from bvae.models import initial_model
from bvae.records import (
    CheckpointSaved,
    Divergence,
    EpochEnded,
    EpochRecord,
    Event,
    Listener,
    Progress,
    Stepped,
    TrainingMeans,
)
from bvae.session_files import CHECKPOINTS, checkpoints
from bvae.storage import make_folder, remove
from bvae.training.checkpoint import (
    OPTIMIZER,
    Checkpoint,
    CheckpointError,
    StrippedError,
    check_tensors,
    load_checkpoint,
    save_checkpoint,
    strip_older,
)
from bvae.training.optimization import beta_share, epoch_order, learning_rate, step_seed
from bvae.training.step import (
    READ_EVERY,
    EpochGrids,
    keep_freed_memory,
    make_step,
    reproducible,
    restore_tensors,
    training_state,
)
from bvae.verdict import on_plateau


class Trainer:
    """Trains one run.

    Args:
        config: settings of the run.
        corpus: the grids; their fingerprint must be that in `config`.
        directory: the run's folder; checkpoints are written to `directory/checkpoints/`.
        listeners: called with each event, in order, in the training thread.

    Attributes:
        model: the model; up to date at each checkpoint and after `fit`, even if `fit` raised an exception.
        steps: maximum number of steps of the run.
        progress: completed steps, sums of the current epoch, and the records of completed epochs.
        divergence: the step at which training stopped because a number was not finite, or None.

    Raises:
        ValueError: if the corpus has another fingerprint, or precision is still "auto".
    """

    def __init__(
        self, config: RunConfig, corpus: Corpus, directory: Path, *, listeners: Sequence[Listener] = ()
    ) -> None:
        if corpus.fingerprint != config.corpus_fingerprint:
            raise ValueError(
                f"corpus fingerprint is {corpus.fingerprint}; the run was configured for "
                f"{config.corpus_fingerprint}: use the corpus it was configured with"
            )
        if config.training.precision == "auto":
            raise ValueError("precision is 'auto'; expected fp32 or bf16, see resolve_precision")
        self.config, self.corpus, self.listeners = config, corpus, listeners
        self.checkpoints = directory / CHECKPOINTS
        self.progress = Progress(config=config)
        self.divergence: Divergence | None = None
        training = config.training
        self._device = torch.device(training.device)
        self.batch_size = min(training.batch_size, len(corpus.train))
        self.steps_per_epoch = len(corpus.train) // self.batch_size
        self.steps = training.epochs * self.steps_per_epoch
        self.model = initial_model(config).to(self._device)
        self.loss = run_loss(config, corpus)
        self._stripped: set[Path] = set()
        self._noise = torch.Generator(self._device).manual_seed(config.seed)
        example = torch.from_numpy(corpus.train[:2].copy())
        self._grids = EpochGrids(corpus.train, self._device)
        self._unread: list[tuple[int, slice, Tensor]] = []
        self._train_step = make_step(self.model, self.loss, training, example)
        self._evaluator = Evaluator(
            corpus.val,
            self.loss,
            precision=training.precision,
            classes=config.classes,
            background=config.background,
        )

    def fit(self, last: int | None = None) -> Sequence[EpochRecord]:
        """Train until step `last`, by default the whole run. Stop on a plateau, or if a number is not finite.

        Returns: the records of completed epochs.

        Raises:
            StorageError: if a checkpoint cannot be written.
        """
        keep_freed_memory()
        last = self.steps if last is None else last
        with reproducible(self._device), seeded(self.config.seed, self._device):
            while self.divergence is None and self.progress.step < last and not self.has_ended:
                try:
                    self._train_epoch(last)
                finally:
                    self._train_step.sync_model()
                if self._read() and self.progress.step == (self.epoch + 1) * self.steps_per_epoch:
                    self._end_epoch()
        return self.progress.history

    def write(self, path: Path, *others: Path) -> None:
        """Write a checkpoint to each path, without an event. Raises StorageError."""
        self._read()
        self._train_step.sync_model()
        self.progress.noise_state = self._noise.get_state().numpy().tobytes()
        save_checkpoint(
            Checkpoint(training_state(self.model, self._train_step), self.progress), path, *others
        )

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return len(self.progress.history)

    @property
    def has_ended(self) -> bool:
        """Whether all epochs are completed, or the validation loss is on a plateau."""
        history, training = self.progress.history, self.config.training
        return self.epoch == training.epochs or on_plateau(history, training)

    def restore(self, path: Path) -> None:
        """Load a checkpoint and save it again. Repeat the events of its last epoch and of the checkpoint.

        The run may have been interrupted before all files were saved or all listeners were called. Files
        and events that are repeated have the same content. If the run was extended, the checkpoint may be
        older than the extension.

        Raises:
            CheckpointError: if the file is damaged or is not a checkpoint of this run.
            StrippedError: if the checkpoint holds no optimizer state; only the newest ones hold it.
        """
        checkpoint = load_checkpoint(path, Progress)
        if not self.config.continues(checkpoint.state.config):
            raise CheckpointError(f"{path} is of another run: its configuration differs")
        own = training_state(self.model, self._train_step)
        if not any(name.startswith(OPTIMIZER) for name in checkpoint.tensors):
            weights = {name: tensor for name, tensor in own.items() if not name.startswith(OPTIMIZER)}
            check_tensors(path, checkpoint.tensors, weights)
            raise StrippedError(f"{path} holds no optimizer state; expected one of the newest checkpoints")
        check_tensors(path, checkpoint.tensors, own)
        noise = self._check_progress(path, checkpoint.state)
        # All checks are done before the first change, so a checkpoint that is refused changes nothing.
        restore_tensors(own, checkpoint.tensors)
        self.progress = dataclasses.replace(checkpoint.state, config=self.config)
        self._unread.clear()
        self._noise.set_state(noise)
        if self.epoch:
            self._announce(EpochEnded(self.progress.history))
        self._save(*self._due())

    def _train_epoch(self, last: int) -> None:
        """Train the remaining steps of the current epoch, up to step `last`."""
        started = time.perf_counter() - self.progress.epoch_seconds
        done = self.progress.step - self.epoch * self.steps_per_epoch
        train, cells = len(self.corpus.train), self.corpus.grid_size**2
        self._grids.set_order(epoch_order(self.config.seed, self.epoch, train, cells=cells))
        self.model.train()
        for i in range(done, min(self.steps_per_epoch, last - self.epoch * self.steps_per_epoch)):
            if not self._step(slice(i * self.batch_size, (i + 1) * self.batch_size)):
                return
            self.progress.step += 1
            self.progress.epoch_seconds = time.perf_counter() - started
            self._announce(Stepped(self.progress.step, self.steps, self.epoch + 1, self.batch_size))
            if i + 1 < self.steps_per_epoch:
                self._save(*self._due())

    def _step(self, part: slice) -> bool:
        """Train on the grids in a slice of the epoch's order. Return False if it read an infinity or NaN.

        If a loss or gradient norm is not finite, this step and all later steps leave the weights unchanged.
        """
        step = self.progress.step
        seed_generators(step_seed(self.config.seed, step), self._device)
        terms, norm = self._train_step.forward_backward(self._grids[part], self._noise, self._beta(step))
        self._unread.append((step, part, torch.stack((*terms, norm))))
        if len(self._unread) >= READ_EVERY[self._device.type] and not self._read():
            return False
        self._train_step.step(self._learning_rate(step))
        return self.divergence is None

    def _read(self) -> bool:
        """Add the numbers of the steps since the last read to the sums; return whether all are finite."""
        unread, self._unread = self._unread, []
        if not unread or self.divergence is not None:
            return self.divergence is None
        sums = np.array(self.progress.epoch_sums)
        read = torch.stack([numbers for *_, numbers in unread]).tolist()
        for (step, part, _), (loss, reconstruction, kl, accuracy, norm) in zip(unread, read, strict=True):
            numbers = {"loss": loss, "reconstruction": reconstruction, "kl": kl, "gradient_norm": norm}
            if not all(map(math.isfinite, numbers.values())):
                self.progress.step = step
                self._diverge(step + 1, numbers, self._grids.order[part])
                break
            sums += (loss, reconstruction, kl, accuracy)
        self.progress.epoch_sums = tuple(sums.tolist())
        return self.divergence is None

    def _learning_rate(self, step: int) -> float:
        training = self.config.training
        total = None if training.until_plateau else self._stage_end(step)
        return learning_rate(step, total=total, warmup=training.warmup_steps, peak=training.learning_rate)

    def _beta(self, step: int) -> float:
        training = self.config.training
        warmup = training.beta_warmup * self.steps_per_epoch
        total = self._stage_end(step)
        return training.beta * beta_share(step, total=total, warmup=warmup, schedule=training.beta_schedule)

    def _stage_end(self, step: int) -> int:
        """Return the total number of steps at the end of a step's stage, see `TrainingConfig.stages`."""
        ends = (epochs * self.steps_per_epoch for epochs in self.config.training.stages)
        return next(end for end in ends if step < end)

    def _end_epoch(self) -> None:
        progress = self.progress
        started = time.perf_counter()
        validation = self._evaluator.measure(self.model)
        if not math.isfinite(validation.loss):
            self._diverge(progress.step, {"validation_loss": validation.loss}, np.empty(0, np.int64))
            return
        means = TrainingMeans(*(total / self.steps_per_epoch for total in progress.epoch_sums))
        record = EpochRecord(
            epoch=self.epoch + 1,
            step=progress.step,
            learning_rate=self._learning_rate(progress.step - 1),
            beta=self._beta(progress.step - 1),
            seconds=progress.epoch_seconds + time.perf_counter() - started,
            train=means,
            validation=validation,
        )
        progress.history.append(record)
        progress.epoch_sums, progress.epoch_seconds = (0.0, 0.0, 0.0, 0.0), 0.0
        self._announce(EpochEnded(progress.history))
        self._save(*self._due())

    def _due(self) -> list[str]:
        """Return the names of the checkpoints to save at this step."""
        training, history = self.config.training, self.progress.history
        if self.progress.step > self.epoch * self.steps_per_epoch:
            every = training.checkpoint_every_steps
            due = every and self.progress.step % every == 0
            return [f"epoch_{self.epoch + 1:03d}_step_{self.progress.step:06d}"] if due else []
        names = []
        if self.epoch % training.checkpoint_every == 0 or self.epoch in training.stages or self.has_ended:
            names.append(f"epoch_{self.epoch:03d}")
        if min(history, key=lambda record: record.validation.loss).epoch == self.epoch:
            names.append("best")
        return names

    def _save(self, *names: str) -> None:
        if not names or not self._read():
            return
        make_folder(self.checkpoints)
        paths = tuple(self.checkpoints / f"{name}.safetensors" for name in names)
        self.write(*paths)
        self._announce(CheckpointSaved(paths, self.epoch, self.progress.step, self.model))
        self._remove_older(paths[0])
        saved = checkpoints(self.checkpoints.parent)
        self._stripped.difference_update(paths)
        strip_older(saved[saved.index(paths[0]) :], Progress, self._stripped)

    def _remove_older(self, saved_now: Path) -> None:
        """Remove old checkpoints as `keep_checkpoints` says, except `best`. Raises StorageError."""
        keep = self.config.training.keep_checkpoints
        if keep != "all":
            saved = checkpoints(self.checkpoints.parent)
            # Files of later steps, if any, are damaged: the resumed run skipped them, and replaces them.
            for path in saved[saved.index(saved_now) + keep :]:
                if path.stem != "best":
                    remove(path)

    def _diverge(self, step: int, numbers: dict[str, float], rows: NDArray[np.int64]) -> None:
        self.divergence = Divergence(
            epoch=self.epoch + 1,
            step=step,
            batch=tuple(rows.tolist()),
            terms={name: f"{value:.6g}" for name, value in numbers.items()},
        )

    def _announce(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def _check_progress(self, path: Path, progress: Progress) -> Tensor:
        """Return the state of the generator. Raises CheckpointError if the progress is not consistent."""
        epochs = [record.epoch for record in progress.history]
        steps = progress.step - len(epochs) * self.steps_per_epoch
        if (
            epochs != [*range(1, len(epochs) + 1)]
            or not 0 <= steps < self.steps_per_epoch
            or not 0 < progress.step <= progress.config.training.epochs * self.steps_per_epoch
        ):
            raise CheckpointError(
                f"{path} is at step {progress.step} with {len(epochs)} epochs recorded; these disagree"
            )
        try:
            noise = torch.frombuffer(bytearray(progress.noise_state), dtype=torch.uint8)
            torch.Generator(self._device).set_state(noise)
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} holds no state of the random generator: {error}") from error
        return noise


def run_loss(config: RunConfig, corpus: Corpus) -> BetaVAELoss:
    """Return the loss of a run, with class weights from the counts of the training split."""
    weight = option_weights(config.option, corpus.class_counts).to(config.training.device)
    training = config.training
    return BetaVAELoss(
        gamma=config.option.gamma, weight=weight, beta=training.beta, free_bits=training.free_bits
    )
