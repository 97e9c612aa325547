"""The training loop, for every model: schedule, averages, checkpoints, log.

A run is a folder: checkpoint.pt, from which it goes on wherever it was stopped, and log.jsonl.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lic.errors import LicError
from lic.layers.integer import learns
from lic.training import data


class Trainable(nn.Module):
    """What a model's networks offer to training. shrunk: the share of the crops that are to be scaled down."""

    shrunk = 0.5

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """pixels (N, 3, H, W) float32, 0..255 -> `loss`, what to optimise, and whatever else is worth reading."""
        raise NotImplementedError

    def shipped(self, pictures: list[data.Pixels]) -> dict[str, Tensor]:
        """The tensors of a weights file; the pictures are there to calibrate what is not learned by gradients."""
        raise NotImplementedError

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        """Go on from the tensors of a weights file."""
        raise NotImplementedError


@dataclass(frozen=True)
class Options:
    """minutes, or steps if not None, say how long; rate is the highest learning rate; precision as in `autocast`; part
    has the names of the modules of the networks that are trained; none, for all."""

    minutes: float = 60.0
    steps: int | None = None
    batch: int = 6
    side: int = 128
    rate: float = 1e-3
    seed: int = 0
    precision: str = "auto"
    clip: float = 1.0
    part: Sequence[str] = ()


CHECKPOINT_EVERY, LOG_EVERY, VALIDATE_EVERY = 500, 100, 1000  # steps
_WARM_UP, _HOLD, _LOWEST = 200, 0.25, 0.01  # steps; share of the run before the decay; share of the rate at its end


def learning_rate(options: Options, step: int, done: float) -> float:
    """Linear warm-up, a plateau, then half a cosine; done is the share of the run that is over."""
    decay = 0.5 + 0.5 * math.cos(math.pi * max(0.0, done - _HOLD) / (1 - _HOLD))
    return options.rate * min(1.0, (step + 1) / _WARM_UP) * max(_LOWEST, decay)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes it faster than float32 ("auto"), or as told."""
    if precision == "auto":
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and supported()
        precision = "bfloat16" if fast else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class Run:
    """One training: the networks, their optimiser and average, and how far they are."""

    def __init__(self, networks: Trainable, folder: Path, options: Options, device: torch.device):
        self.networks = networks.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.folder, self.options, self.device = folder, options, device
        if unknown := [name for name in options.part if name not in dict(networks.named_modules())]:
            parts = ", ".join(name for name, _ in networks.named_children())
            raise LicError(f"these networks have no part {unknown[0]!r}, but {parts}, and their parts")
        if options.part:
            for name, parameter in networks.named_parameters():
                if not name.startswith(tuple(part + "." for part in options.part)):
                    parameter.requires_grad_(False)
            if not learns(networks):
                raise LicError(f"this command does not train {', '.join(options.part)}")
        self.optimiser = torch.optim.Adam(networks.parameters(), lr=options.rate, betas=(0.9, 0.98))
        self.average = {k: v.clone() for k, v in networks.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            networks.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def done(self) -> float:
        """The share of the run that is over; all processes agree on it."""
        if self.options.steps is not None:
            return self.step / self.options.steps
        done = torch.tensor(self.seconds / 60 / self.options.minutes, device=self.device)
        if dist.is_initialized():
            dist.broadcast(done, 0)
        return float(done)

    def save(self) -> None:
        state = {"model": self.networks.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"average": self.average, "step": self.step, "seconds": self.seconds}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def averaged(self) -> Trainable:
        """The networks with the moving average of their weights."""
        self.networks.load_state_dict(self.average)
        return self.networks

    def update(self, rate: float) -> None:
        """One step of the optimiser on the gradients at hand, and of the moving average."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for part in self.networks.children():
            nn.utils.clip_grad_norm_(part.parameters(), self.options.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        keep = min(0.998, self.step / (self.step + 20))
        with torch.no_grad():
            for name, value in self.networks.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)

    def crops(self, pictures: list[data.Pixels], rng: np.random.Generator, count: int) -> Tensor:
        return data.crops(pictures, rng, count, self.options.side, self.networks.shrunk).to(self.device)

    @torch.no_grad()
    def validate(self, pictures: list[data.Pixels]) -> dict[str, float]:
        """The losses of the averaged networks on the same 32 crops every time."""
        current = {k: v.clone() for k, v in self.networks.state_dict().items()}
        networks = self.averaged().eval()
        sums: dict[str, float] = defaultdict(float)
        for i in range(8):
            pixels = self.crops(pictures, np.random.default_rng(i), 4)
            for name, value in networks(pixels, torch.Generator().manual_seed(i)).items():
                sums["validation_" + name] += float(value) / 8
        self.networks.train().load_state_dict(current)
        return sums


def train(networks: Trainable, pictures: data.Pictures, folder: Path, options: Options, device: torch.device) -> Run:
    """Train, or go on training, until the time or the steps are over. Under torchrun, each process is a rank."""
    if not pictures.training or not pictures.validation:
        raise LicError("training needs pictures to train on and to validate on")
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(options.seed)
    run = Run(networks, folder, options, device)
    model: Any = DistributedDataParallel(networks) if dist.is_initialized() else networks
    sums: dict[str, float] = defaultdict(float)
    clock = time.monotonic()
    with (folder / "log.jsonl").open("a") as log, tqdm(initial=run.step, total=options.steps, disable=None) as bar:
        while (done := run.done) < 1:
            key = (options.seed, rank, run.step)
            pixels = run.crops(pictures.training, np.random.default_rng(key), options.batch)
            generator = torch.Generator().manual_seed(int(np.random.default_rng((*key, 1)).integers(2**62)))
            with autocast(options.precision, device):
                losses = model(pixels.contiguous(memory_format=torch.channels_last), generator)
            losses["loss"].backward()
            rate = learning_rate(options, run.step, done)
            run.update(rate)
            for name, value in losses.items():
                sums[name] += float(value.detach())
            run.seconds += time.monotonic() - clock
            clock = time.monotonic()
            bar.update()
            if rank:
                continue
            if run.step % LOG_EVERY == 0:
                row = {"step": run.step, "minutes": round(run.seconds / 60, 2), "rate": rate}
                row |= {name: round(value / LOG_EVERY, 5) for name, value in sums.items()}
                if run.step % VALIDATE_EVERY == 0:
                    row |= {name: round(value, 5) for name, value in run.validate(pictures.validation).items()}
                print(json.dumps(row), file=log, flush=True)
                bar.set_postfix({name: f"{sums[name] / LOG_EVERY:.4f}" for name in sums}, refresh=False)
                sums.clear()
            if run.step % CHECKPOINT_EVERY == 0:
                run.save()
    if not rank:
        run.save()
    return run
