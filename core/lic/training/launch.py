"""From `lic train`'s arguments to a run, in one process or, under torchrun, in many; and to a weights file."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save

from lic import registry
from lic.api import choose_device
from lic.codec import ModelCard
from lic.training import data
from lic.training.loop import Options, Trainable, train

CALIBRATION_PICTURES = 60


def launch(args: argparse.Namespace) -> int:
    codec = registry.model_class(args.model)
    device = choose_device(args.device)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    names = [field.name for field in dataclasses.fields(Options) if hasattr(args, field.name)]
    options = Options(**{name: getattr(args, name) for name in names})
    networks = codec.trainable()
    if args.start:
        networks.start_from(load_file(args.start))
    pictures = data.load(args.data, options.side)
    run = train(networks, pictures, args.folder or Path("runs") / args.model, options, device)
    leader = not dist.is_initialized() or dist.get_rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    if args.export and leader:
        digest = export(run.averaged(), run.step, codec.card, pictures, args.export)
        print(f"{args.export}: weights {digest}")
    return 0


def export(networks: Trainable, steps: int, card: ModelCard, pictures: data.Pictures, target: Path) -> str:
    """Write a weights file of networks after so many steps of training; its hash, as files name it."""
    shipped = networks.shipped(pictures.training[:: max(1, len(pictures.training) // CALIBRATION_PICTURES)])
    tensors = {name: tensor.cpu().contiguous() for name, tensor in shipped.items()}
    contents = save(tensors, {"card": json.dumps(dataclasses.asdict(card)), "steps": str(steps)})
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(contents)
    os.replace(temporary, target)
    return hashlib.sha256(contents).hexdigest()[:16]
