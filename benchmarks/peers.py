"""The same model, loss and data under other trainers: a plain PyTorch loop, Lightning and Pythae.

Each trainer is used as its documentation shows. In each step, bvae also checks for values that are not finite
and computes the accuracy. The peers do not, and Pythae does not clip gradients.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.contenders import Job, Pace

CLASSES = 10


class PlainVAE(nn.Module):
    """The model of bvae in plain PyTorch, from grids `[B, 16, 16]` to logits and posterior.

    Its parameters have the names and shapes of bvae's parameters, so weights can be exchanged.
    """

    def __init__(self, latent_dim: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(CLASSES, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, 128),
            nn.ReLU(),
            nn.Linear(128, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 128),
            nn.ReLU(),
            nn.Linear(128, 2048),
            nn.ReLU(),
            nn.Unflatten(1, (128, 4, 4)),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, CLASSES, 3, padding=1),
        )

    def forward(self, grids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one_hot = F.one_hot(grids.long(), CLASSES).permute(0, 3, 1, 2).float()
        mean, log_variance = self.encoder(one_hot).chunk(2, dim=1)
        latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(latent), mean, log_variance


class PlainLoss(nn.Module):
    """The weighted focal loss, computed from the cross-entropy, plus β times the KL divergence."""

    weight: Tensor

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.gamma, self.beta = job.gamma, job.beta
        self.register_buffer("weight", torch.tensor(job.weight))

    def forward(self, logits: Tensor, mean: Tensor, log_variance: Tensor, grids: Tensor) -> Tensor:
        target = grids.long()
        nats = F.cross_entropy(logits.float(), target, reduction="none")
        focal = self.weight[target] * (1 - torch.exp(-nats)) ** self.gamma * nats
        kl = 0.5 * (mean.float().square() + log_variance.float().exp() - 1 - log_variance.float())
        return focal.mean() + self.beta * kl.sum(1).mean()


def plain_model(job: Job) -> PlainVAE:
    """Return a new model. Its weights are channels-last if the job is tuned."""
    torch.manual_seed(job.seed)
    layout = torch.channels_last if job.tuned else torch.contiguous_format
    model: PlainVAE = PlainVAE(job.latent_dim).to(memory_format=layout)  # type: ignore[call-overload]
    return model


def autocast(job: Job) -> contextlib.AbstractContextManager[Any]:
    """Return a context of bf16 mixed precision, which is enabled if the job is tuned."""
    return torch.autocast("cpu", torch.bfloat16, enabled=job.tuned)


def adam_settings(job: Job) -> dict[str, Any]:
    """Return the settings of Adam: the fused kernel if the job is tuned."""
    return {"fused": True} if job.tuned else {}


def train_loop(job: Job, pace: Pace) -> None:
    """Train with a plain PyTorch loop."""
    model, loss = plain_model(job), PlainLoss(job)
    optimizer = torch.optim.Adam(model.parameters(), lr=job.learning_rate, **adam_settings(job))
    data = DataLoader(TensorDataset(torch.from_numpy(job.grids)), batch_size=job.batch_size, shuffle=True)
    model.train()
    for _ in range(job.epochs):
        pace.epoch_begins()
        for (grids,) in data:
            with autocast(job):
                total = loss(*model(grids), grids)
            optimizer.zero_grad()
            total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), job.max_gradient_norm)
            optimizer.step()
            pace.step_ends()
        pace.epoch_ends()


def train_lightning(job: Job, pace: Pace) -> None:
    """Train with Lightning's Trainer, without its logger, checkpoints and progress bar."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.loss = plain_model(job), PlainLoss(job)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            total: Tensor = self.loss(*self.model(batch[0]), batch[0])
            return total

        def configure_optimizers(self) -> torch.optim.Optimizer:
            # Not fused: with the fused Adam, Lightning refuses to clip gradients under mixed precision.
            return torch.optim.Adam(self.model.parameters(), lr=job.learning_rate)

        def on_train_epoch_start(self) -> None:
            pace.epoch_begins()

        def on_train_batch_end(self, *_: Any) -> None:
            pace.step_ends()

        def on_train_epoch_end(self) -> None:
            pace.epoch_ends()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # it advises to use workers, which are slower here
    data = DataLoader(TensorDataset(torch.from_numpy(job.grids)), batch_size=job.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        precision="bf16-mixed" if job.tuned else "32-true",
        gradient_clip_val=job.max_gradient_norm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), data)


def train_pythae(job: Job, pace: Pace) -> None:
    """Train with Pythae's BaseTrainer, which does not clip. Mixed precision on a CPU is added here."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import BaseAE, BaseAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Model(BaseAE):
        def __init__(self) -> None:
            super().__init__(BaseAEConfig(input_dim=(16, 16), latent_dim=job.latent_dim))
            self.model, self.loss = plain_model(job), PlainLoss(job)

        def forward(self, inputs: Any, **_: Any) -> ModelOutput:
            with autocast(job):
                return ModelOutput(loss=self.loss(*self.model(inputs["data"]), inputs["data"]))

        def save(self, dir_path: str) -> None:
            """Do nothing: a benchmark keeps no model."""

    class Signal(TrainingCallback):
        def on_epoch_begin(self, training_config: Any, **_: Any) -> None:
            pace.epoch_begins()

        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            pace.step_ends()

        def on_epoch_end(self, training_config: Any, **_: Any) -> None:
            pace.epoch_ends()

    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=job.epochs,
            per_device_train_batch_size=job.batch_size,
            learning_rate=job.learning_rate,
            optimizer_params=adam_settings(job),
            keep_best_on_train=True,
            no_cuda=True,
        )
        data = BaseDataset(torch.from_numpy(job.grids), torch.zeros(len(job.grids), dtype=torch.int64))
        BaseTrainer(Model(), data, training_config=config, callbacks=[Signal()]).train()
