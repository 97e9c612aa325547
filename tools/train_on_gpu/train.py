"""Train all of `wavelet` on one GPU: priors and post-filter together, then the filter alone at the prices of tables.

    python tools/train_on_gpu/train.py DATA OUT.safetensors --minutes 7 --filter-minutes 2

Needs nvcc. OUT gets the integers of the networks, without tables; `--export`, anywhere, adds these, by DATA's pictures:

    python tools/train_on_gpu/train.py DATA OUT.safetensors --export core/lic/models/wavelet.safetensors
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from device import Batch, Coder, DeviceConv2d, Losses, Parameters
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lic import weights
from lic.layers import integer
from lic.layers.band_prior import LEVELS, STEP_UNIT
from lic.layers.colour import COLOUR, best_angles, to_planes, turn
from lic.models import wavelet
from lic.training import data
from lic.training.launch import export

# How many crops of which side make a batch, and how often: 2.1 megapixels each but the last.
CROPS = {512: 8, 320: 20, 256: 32, 128: 96}
OFTEN = {512: 0.2, 320: 0.35, 256: 0.3, 128: 0.15}
SHRUNK = 0.65  # of the crops
SHARED = 0.85  # of the crops: those that are coded less a share of the filter's correction


def matrix(picture: data.Pixels) -> np.ndarray:
    """Of the planes that a picture's own file would have."""
    pixels = torch.from_numpy(picture[:1024, :1024].copy()).permute(2, 0, 1)[None].float()
    return (turn(best_angles(to_planes(pixels), LEVELS)) @ COLOUR).numpy()


class Crops(IterableDataset[Batch]):
    """Batches without end. Those that are validated: of one step, nothing left to chance but the crops."""

    def __init__(self, pictures: list[data.Pixels], sides: list[int]):
        self.pictures, self.sides = pictures, sides
        self.matrices = [matrix(picture) for picture in pictures]

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        rng = np.random.default_rng(info.id if info else 0)
        chances = np.array([OFTEN[side] for side in self.sides])
        while True:
            yield self.batch(rng, int(rng.choice(self.sides, p=chances / chances.sum())))

    def batch(self, rng: np.random.Generator, side: int, step: float | None = None) -> Batch:
        count = CROPS[side]
        large = [i for i, picture in enumerate(self.pictures) if min(picture.shape[:2]) >= side]
        drawn = rng.choice(large, count, p=data.chances([self.pictures[i] for i in large]))
        crops = np.stack([data.crop(self.pictures[i], rng, side, SHRUNK) for i in drawn])
        grey = (crops == crops[..., :1]).all((1, 2, 3))
        matrices = np.where(grey[:, None, None], COLOUR.numpy(), np.stack([self.matrices[i] for i in drawn]))
        wide = rng.random(count) < 0.12
        octaves = np.where(wide, rng.uniform(1, 8.7, count), rng.uniform(math.log2(6), math.log2(280), count))
        steps = np.full(count, step) if step else np.exp2(octaves)
        shares = np.where((rng.random(count) < SHARED) | bool(step), wavelet._SHARES[0], 0)
        return Batch(
            torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(matrices).float(),
            torch.from_numpy((steps * STEP_UNIT).round().astype(np.int64)),
            torch.from_numpy(shares).float(),
        )


def decibels(losses: Losses) -> Tensor:
    """What the filter gains, with its first correction and with the best amounts: (2,)."""
    return torch.stack([10 * torch.log10(losses.before / x).mean() for x in (losses.plain, losses.best)])


class Training:
    """The networks on their way, and what is read of them."""

    def __init__(self, networks: wavelet.Networks, device: torch.device):
        self.device = device
        networks.to(device)
        self.parameters = Parameters([*networks.priors, networks.post_filter], device)
        self.coder = Coder(networks, device)
        self.sums = torch.zeros(4, device=device)  # of steps, bits per pixel, decibels

    def step(self, batch: Batch, prior_learns: bool) -> None:
        """Gradients, for `Parameters.update`; nothing here waits for the device."""
        for gradient in self.parameters.gradients:
            gradient.zero_()
        self.coder.begin()
        losses = self.coder.losses(batch, prior_learns)
        loss = torch.stack([torch.log(x / losses.before + 1e-3) for x in (losses.plain, losses.best)]).mean()
        if prior_learns:
            loss = loss + (losses.bits / (0.08 + losses.bits.detach())).mean()  # every rate counts alike
        loss.backward()
        with torch.no_grad():
            if prior_learns:
                self.coder.move_points()
            self.sums += torch.cat([self.sums.new_ones(1), losses.bits.mean()[None], decibels(losses)])

    def graph(self, batch: Batch, prior_learns: bool, pool: Any) -> Callable[[], None]:
        """The step on that batch, to be replayed."""
        points = self.coder.points.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(batch, prior_learns)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self.step(batch, prior_learns)
        self.coder.points.copy_(points)
        self.sums.zero_()
        return graph.replay

    def phase(self, feed: Iterator[Batch], minutes: float, rates: list[float], prior_learns: bool) -> int:
        """Train for so many minutes; the number of steps."""
        steps: dict[int, tuple[Batch, Callable[[], None]]] = {}
        pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        start = said = time.monotonic()
        while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
            given = next(feed)
            side = given.pixels.shape[2]
            if side not in steps:
                held = Batch(*(x.to(self.device) for x in given))
                step = self.graph(held, prior_learns, pool) if pool else partial(self.step, held, prior_learns)
                steps[side] = held, step
            held, step = steps[side]
            for here, there in zip(held, given, strict=True):
                here.copy_(there, non_blocking=True)
            step()
            decay = min(1, (self.parameters.steps + 1) / 100) * max(
                0.005, 0.5 + 0.5 * math.cos(math.pi * max(0, done - 0.2) / 0.8)
            )
            self.parameters.update([rate * decay for rate in rates])
            if self.parameters.steps % 8 == 0 and pool:
                torch.cuda.synchronize()  # or the host would be far ahead
            if time.monotonic() > said + 15:
                count, *read = self.sums.tolist()
                print(
                    f"{100 * done:.0f} %, step {self.parameters.steps}", *(f"{x / count:.4f}" for x in read), flush=True
                )
                self.sums.zero_()
                said = time.monotonic()
        taken = self.parameters.steps
        self.parameters.settle()
        return taken

    @torch.no_grad()
    def validate(self, crops: Crops) -> None:
        for step in (10, 24, 60, 140):
            rows = []
            for side in crops.sides:
                batch = Batch(*(x.to(self.device) for x in crops.batch(np.random.default_rng(side), side, step)))
                losses = self.coder.losses(batch)
                psnr = -10 * torch.log10(losses.best * (step / 255) ** 2).mean()
                rows.append(torch.cat([losses.bits.mean()[None], psnr[None], decibels(losses)]))
            bits, psnr, plain, best = torch.stack(rows).mean(0).tolist()
            print(f"step {step}: {bits:.4f} bpp, {psnr:.3f} dB, filter {plain:.4f}, {best:.4f} dB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=7.2)
    parser.add_argument("--filter-minutes", type=float, default=1.8)
    parser.add_argument(
        "--rates", type=float, nargs=3, default=(3.5e-4, 5e-4, 2e-4), help="prior, filter, filter alone"
    )
    parser.add_argument(
        "--sides", type=int, nargs="+", default=list(CROPS), help="fewer, for pictures that are smaller"
    )
    parser.add_argument("--workers", type=int, default=13, help="processes that cut crops")
    parser.add_argument("--export", type=Path, help="don't train: add tables to what is in OUT, and write it here")
    args = parser.parse_args()
    pictures = data.load(args.data, min(args.sides))
    networks = wavelet.Networks(DeviceConv2d)
    if args.export:
        trained = load_file(args.out)
        steps = int(trained.pop("steps"))
        networks.start_from(trained)
        print(export(networks, steps, wavelet.WaveletCodec.card, pictures, args.export))  # type: ignore[arg-type]
        return
    shipped, _ = weights.load(Path(wavelet.__file__).parent, "wavelet", None)
    networks.start_from(shipped)
    cuda = torch.cuda.is_available()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    training, validation = (Crops(x, args.sides) for x in (pictures.training, pictures.validation))
    loader = DataLoader(training, batch_size=None, num_workers=args.workers, pin_memory=cuda)
    feed = iter(loader)
    next(feed)  # workers start before CUDA does
    run = Training(networks, torch.device("cuda" if cuda else "cpu"))
    run.validate(validation)
    prior, together, alone = args.rates
    steps = run.phase(feed, args.minutes, [prior] * len(networks.priors) + [together], True)
    run.validate(validation)
    run.coder.entries.zero_()
    with torch.no_grad():
        for _ in range(24):
            run.coder.losses(Batch(*(x.to(run.device) for x in next(feed))))
    run.coder.prices.copy_(run.coder.tables())
    steps += run.phase(feed, args.filter_minutes, [0.0] * len(networks.priors) + [alone], False)
    run.validate(validation)
    run.parameters.write_back()
    networks.points.copy_(run.coder.points)
    trained = integer.shipped(networks.cpu()) | {"points": networks.points, "steps": torch.tensor(steps)}
    save_file({name: tensor.contiguous() for name, tensor in trained.items()}, args.out)


if __name__ == "__main__":
    main()
