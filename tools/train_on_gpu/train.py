"""Train all of `wavelet` on one GPU: priors and both post-filters, together.

    python tools/train_on_gpu/train.py DATA OUT.safetensors --minutes 12

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
import torch.nn.functional as F
from device import Batch, Coder, DeviceConv2d, Losses, Parameters
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lic import weights
from lic.layers import integer
from lic.layers.band_prior import LEVELS, STEP_UNIT
from lic.layers.colour import COLOUR, UNTURNED, best_angles, times, turn
from lic.models import wavelet
from lic.training import data
from lic.training.launch import export

# How many crops of which side make a batch, for tune="psnr" and for "visual", and how often: 2.1 megapixels
# each, but for the last ones, which are too small for MS-SSIM.
CROPS = {512: (5, 3), 320: (12, 8), 256: (20, 12), 128: (96, 0)}
OFTEN = {512: 0.2, 320: 0.35, 256: 0.3, 128: 0.15}
SHRUNK = 0.65  # of the crops
SHARED = 0.85  # of the crops: those that are coded less a share of the filter's correction
RECOLOURED = 0.5  # of the crops


def recoloured(crop: data.Pixels, rng: np.random.Generator) -> data.Pixels:
    """With another contrast, brightness and white balance."""
    x = np.arange(256) / 255
    gains = np.exp(rng.normal(0, 0.08, 3)) * rng.uniform(0.7, 1.1)
    curves = 0.5 + gains[:, None] * (x ** np.exp(rng.normal(0, 0.25)) - 0.5)
    tables = (curves * 255).round().clip(0, 255).astype(np.uint8)
    return np.stack([table[crop[..., i]] for i, table in enumerate(tables)], 2)


def matrix(pixels: np.ndarray, tune: str) -> Tensor:
    """Of the planes (3, 3) that pixels (H, W, 3) have in a file of their own."""
    contrasted = COLOUR @ wavelet._contrasted(wavelet.CONTRASTS[tune])
    planes = times(contrasted, torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] - 128)
    grey = (pixels == pixels[..., :1]).all()
    return turn(UNTURNED if grey else best_angles(planes, LEVELS)) @ contrasted


class Crops(IterableDataset[Batch]):
    """Batches without end."""

    def __init__(self, pictures: list[data.Pixels], sides: list[int]):
        self.pictures, self.sides = pictures, sides

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        rng = np.random.default_rng(info.id if info else 0)
        chances = np.array([OFTEN[side] for side in self.sides])
        while True:
            yield self.batch(rng, int(rng.choice(self.sides, p=chances / chances.sum())))

    def batch(self, rng: np.random.Generator, side: int, training: bool = True) -> Batch:
        """Or one to be validated, of a step of 1: nothing is left to chance but the crops."""
        tunes = [tune for tune, count in zip(("psnr", "visual"), CROPS[side], strict=True) for _ in range(count)]
        count = len(tunes)
        large = [i for i, picture in enumerate(self.pictures) if min(picture.shape[:2]) >= side]
        drawn = rng.choice(large, count, p=data.chances([self.pictures[i] for i in large]))
        crops = [data.crop(self.pictures[i], rng, side, SHRUNK) for i in drawn]
        if training:
            crops = [recoloured(crop, rng) if rng.random() < RECOLOURED else crop for crop in crops]
        matrices = torch.stack([matrix(crop, tune) for crop, tune in zip(crops, tunes, strict=True)])
        wide = rng.random(count) < 0.12
        octaves = np.where(wide, rng.uniform(1, 8.7, count), rng.uniform(math.log2(6), math.log2(280), count))
        steps = np.exp2(octaves) if training else np.ones(count)
        steps = np.where(np.array(tunes) == "visual", steps / 2, steps)  # as an encoder has it
        shares = np.where((rng.random(count) < SHARED) | (not training), wavelet._SHARES[0], 0)
        return Batch(
            torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(),
            matrices.float(),
            torch.from_numpy((steps * STEP_UNIT).round().astype(np.int64)),
            torch.from_numpy(shares).float(),
        )


def read(losses: Losses) -> Tensor:
    """Means, (7,). Of pictures for tune="psnr": bits per pixel, and the decibels that the filter gains with its first
    correction and with the best amounts. Of others: bits per pixel, SSIMULACRA 2, MS-SSIM in decibels, and the decibels
    that their filter gains; not a number where there are none."""
    plain = len(losses.before)
    out = [losses.bits[:plain], *(10 * torch.log10(losses.before / x) for x in (losses.plain, losses.best))]
    out.append(losses.bits[plain:])
    if losses.seen:
        out += [
            losses.seen.ssimulacra2,
            -10 * torch.log10(1 - losses.seen.ms_ssim),
            -10 * torch.log10(losses.seen.left),
        ]
    means = torch.stack([x.detach().mean() for x in out])
    return F.pad(means, (0, 7 - len(means)), value=math.nan)


class Training:
    """The networks on their way, and what is read of them."""

    def __init__(self, networks: wavelet.Networks, device: torch.device):
        self.device, self.networks = device, networks.to(device)
        self.parameters = Parameters([*networks.priors, networks.post_filter, networks.visual_filter], device)
        self.coder = Coder(networks, device)
        self.sums = torch.zeros(2, 7, device=device)  # of what `read` has, and how often

    def step(self, batch: Batch) -> None:
        """Gradients, for `Parameters.update`; nothing here waits for the device."""
        for gradient in self.parameters.gradients:
            gradient.zero_()
        self.coder.begin()
        losses = self.coder.losses(batch, CROPS[batch.pixels.shape[2]][0])
        before = losses.before + 1e-9  # nothing is left of some drawings
        loss = torch.stack([torch.log(x / before + 1e-3) for x in (losses.plain, losses.best)]).mean()
        loss = loss + (losses.bits / (0.08 + losses.bits.detach())).mean()  # every rate counts alike
        if losses.seen:
            score, similarity, left = losses.seen
            # A per cent of the bits changes the first two by about as much; the squared error counts little.
            visual = 2 * torch.log(101 - score) + torch.log(1 - similarity + 1e-4) + 0.3 * torch.log(left + 1e-3)
            loss = loss + visual.mean()
        loss.backward()
        self.coder.move_points()
        what = read(losses)
        self.sums += torch.stack([what.nan_to_num(0, 0, 0), what.isfinite().float()])

    def graph(self, batch: Batch, pool: Any) -> Callable[[], None]:
        """The step on that batch, to be replayed."""
        points = self.coder.points.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self.step(batch)
        self.coder.points.copy_(points)
        self.sums.zero_()
        return graph.replay

    def train(self, feed: Iterator[Batch], minutes: float, rates: list[float], out: Path) -> None:
        """Train for so many minutes, and write what is reached, now and then."""
        steps: dict[int, tuple[Batch, Callable[[], None]]] = {}
        pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        start = said = time.monotonic()
        while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
            given = next(feed)
            side = given.pixels.shape[2]
            if side not in steps:
                held = Batch(*(x.to(self.device) for x in given))
                step = self.graph(held, pool) if pool else partial(self.step, held)
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
                means = (self.sums[0] / self.sums[1]).tolist()
                print(f"{100 * done:.0f} %, step {self.parameters.steps}", *(f"{x:.4f}" for x in means), flush=True)
                self.sums.zero_()
                said = time.monotonic()
                self.save(out)
        self.save(out)
        self.parameters.use(self.parameters.average)

    def save(self, out: Path) -> None:
        """The networks' integers, and the points."""
        self.parameters.write_back()
        trained = integer.shipped(self.networks)
        trained |= {"points": self.coder.points, "steps": torch.tensor(self.parameters.steps)}
        save_file({name: tensor.cpu().contiguous() for name, tensor in trained.items()}, out)

    @torch.no_grad()
    def validate(self, crops: Crops) -> None:
        batches = [crops.batch(np.random.default_rng(side), side, training=False) for side in crops.sides]
        held = [Batch(*(x.to(self.device) for x in batch)) for batch in batches]
        for step in (10, 24, 60, 140):
            rows = []
            for side, batch in zip(crops.sides, held, strict=True):
                losses = self.coder.losses(batch._replace(steps=step * batch.steps), CROPS[side][0])
                psnr = -10 * torch.log10(losses.best * (step / 255) ** 2).mean()
                rows.append(torch.cat([psnr[None], read(losses)]))
            print(f"step {step}:", *(f"{x:.4f}" for x in torch.stack(rows).nanmean(0).tolist()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--rates", type=float, nargs=3, default=(3e-4, 4e-4, 5e-4), help="priors, filter, visual one")
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
    prior, post_filter, visual_filter = args.rates
    run.train(feed, args.minutes, [prior] * len(networks.priors) + [post_filter, visual_filter], args.out)
    run.validate(validation)


if __name__ == "__main__":
    main()
