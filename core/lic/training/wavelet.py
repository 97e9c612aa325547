"""Train `wavelet`: python -m lic.training.wavelet RUN --data DIR --minutes 90 [--start WEIGHTS]

RUN is a folder: checkpoint.pt (the run resumes from it), log.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lic.layers.integer import TrainableConv2d
from lic.models.wavelet import COLOUR, Networks


def load_pictures(folder: Path, side: int) -> list[np.ndarray]:
    """The folder's pictures, (H, W, 3) uint8, with the sides of all at least `side`; every sixteenth is left out."""
    files = sorted(f for f in folder.iterdir() if f.suffix in (".jpg", ".png", ".webp"))
    files = [f for i, f in enumerate(files) if i % 16]
    pictures = [np.asarray(Image.open(f).convert("RGB")) for f in files]
    return [p for p in pictures if min(p.shape[:2]) >= side]


def crops(pictures: list[np.ndarray], rng: np.random.Generator, count: int, side: int) -> torch.Tensor:
    """Random crops, mirrored and turned: (count, 3, side, side) float32 in the planes of COLOUR."""
    weights = np.array([min(p.size / 3, 8e5) ** 0.5 for p in pictures])
    out = []
    for i in rng.choice(len(pictures), count, p=weights / weights.sum()):
        h, w = pictures[i].shape[:2]
        y, x = rng.integers(h - side + 1), rng.integers(w - side + 1)
        crop = pictures[i][y : y + side, x : x + side]
        crop = np.rot90(crop, rng.integers(4))
        if rng.random() < 0.04:  # grey
            crop = crop[..., 1:2].repeat(3, 2)
        out.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return torch.einsum("ij,bhwj->bihw", COLOUR, torch.from_numpy(np.stack(out)).float() - 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rate", type=float, default=7e-4, help="the highest learning rate")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = Networks(TrainableConv2d).to(memory_format=torch.channels_last)
    if args.start:
        model.load_state_dict(load_file(args.start))
    optimiser = torch.optim.Adam(model.parameters(), lr=args.rate, betas=(0.9, 0.98))
    average = {k: v.clone() for k, v in model.state_dict().items()}
    n, spent = 0, 0.0
    checkpoint = args.run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average, n, spent = state["average"], state["n"], state["spent"]
    pictures = load_pictures(args.data, args.side)
    log = open(args.run / "log.jsonl", "a")
    sums: dict[str, float] = {}
    clock = time.monotonic()
    while (done := spent / 60 / args.minutes) < 1:
        rate = args.rate * min(1, (n + 1) / 200)
        rate *= 1 if done < 0.2 else max(0.01, 0.5 + 0.5 * math.cos(math.pi * (done - 0.2) / 0.8))
        for group in optimiser.param_groups:
            group["lr"] = rate
        planes = crops(pictures, np.random.default_rng((1, n)), args.batch, args.side)
        losses = model.training_step(planes, torch.Generator().manual_seed(n))
        optimiser.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(model.prior.parameters(), 1.0)
        nn.utils.clip_grad_norm_(model.post_filter.parameters(), 1.0)
        optimiser.step()
        n += 1
        keep = min(0.998, n / (n + 20))
        for k, v in model.state_dict().items():
            average[k].mul_(keep).add_(v.detach(), alpha=1 - keep)
        for k, v in losses.items():
            sums[k] = sums.get(k, 0) + v.item()
        spent += time.monotonic() - clock
        clock = time.monotonic()
        if n % 100 == 0:
            row = {"step": n, "minutes": round(spent / 60, 2), "rate": rate}
            row |= {k: round(v / 100, 5) for k, v in sums.items()}
            print(json.dumps(row), file=log, flush=True)
            sums = {}
        if n % 500 == 0 or spent / 60 >= args.minutes:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state | {"average": average, "n": n, "spent": spent}, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)


if __name__ == "__main__":
    main()
