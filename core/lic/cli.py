"""The command line: lic encode, decode, info, models, train, bench, compare."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lic
from lic import api


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="lic", description="Learned image compression.")
    parser.add_argument("--version", action="version", version=f"lic {lic.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    encode = commands.add_parser("encode", help="pictures -> .lic files")
    _add_files(encode, "pictures of any format that Pillow reads")
    aim = encode.add_mutually_exclusive_group()
    aim.add_argument("-q", "--quality", type=float, default=api.DEFAULT_QUALITY, help="0 to 100 (%(default)s)")
    aim.add_argument("--target-size", type=int, metavar="BYTES", help="of each file: never more, at most 1 %% less")
    aim.add_argument("--target-bpp", type=float, metavar="BITS", help="a pixel, of each file")
    aim.add_argument("--target-psnr", type=float, metavar="DB", help="within 0.05 dB")
    encode.add_argument("-m", "--model", default="wavelet", help="see `lic models` (%(default)s)")
    encode.add_argument("--effort", type=int, default=api.DEFAULT_EFFORT, help="0 to 9 (%(default)s)")
    encode.add_argument("--tune", default="psnr", help="psnr, or visual: the same look in fewer bytes (%(default)s)")
    encode.add_argument("--context", default="parallel", help="parallel, or, of hybrid, serial (%(default)s)")
    encode.add_argument("--lossless", action="store_true", help="bit for bit")
    encode.set_defaults(run=_encode)

    decode = commands.add_parser("decode", help=".lic files -> pictures")
    _add_files(decode, ".lic files")
    decode.add_argument("--format", default="png", help="the pictures' file name extension (%(default)s)")
    decode.set_defaults(run=_decode)

    info = commands.add_parser("info", help="what a file says of itself")
    info.add_argument("files", nargs="+", type=Path)
    info.set_defaults(run=_info)

    models = commands.add_parser("models", help="what is installed")
    models.set_defaults(run=_models)

    train = commands.add_parser("train", help="train a model")
    _add_training(train)
    train.set_defaults(run=_train)

    bench = commands.add_parser("bench", help="rate-distortion curves of models and of other formats")
    compare = commands.add_parser("compare", help="a page that shows one picture under several codecs, at equal size")
    wanted = (sys.argv[1:] if arguments is None else arguments)[:1]
    for name, command in (("bench", bench), ("compare", compare)):
        if wanted == [name]:  # their modules import more than other commands need
            module = importlib.import_module(f"lic.evaluation.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.main)

    args = parser.parse_args(arguments)
    return args.run(args)


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("files", nargs="+", type=Path, help=what)
    parser.add_argument("-o", "--output", type=Path, help="a folder, or, for one input, a file (beside the input)")
    parser.add_argument("--device", help="auto, cpu, cuda, ... ($LIC_DEVICE, then auto)")
    parser.add_argument("--jobs", type=int, default=1, help="files at a time (%(default)s)")
    parser.add_argument("--force", action="store_true", help="do again what is already there")


def _encode(args: argparse.Namespace) -> int:
    names = "quality", "model", "effort", "tune", "context", "lossless", "device"
    targets = "target_size", "target_bpp", "target_psnr"
    options = {name: getattr(args, name) for name in names + targets}
    return _convert(args, ".lic", partial(_encode_file, options=options))


def _encode_file(source: Path, target: Path, options: dict[str, Any]) -> None:
    from PIL import Image

    import pillow_lic  # noqa: F401

    with Image.open(source) as image:
        image.save(target, format="LIC", save_all=getattr(image, "n_frames", 1) > 1, **options)


def _decode(args: argparse.Namespace) -> int:
    if args.device:
        os.environ["LIC_DEVICE"] = args.device
    return _convert(args, "." + args.format.lstrip("."), _decode_file)


def _decode_file(source: Path, target: Path) -> None:
    from PIL import Image

    import pillow_lic  # noqa: F401

    with Image.open(source) as image:
        metadata = {name: image.info[name] for name in ("exif", "icc_profile", "xmp") if name in image.info}
        image.save(target, **metadata)


def _convert(args: argparse.Namespace, extension: str, convert: Callable[[Path, Path], None]) -> int:
    """Each file to its target, under a temporary name until it is whole. Returns the exit status."""
    from tqdm import tqdm

    single = args.output is not None and len(args.files) == 1 and args.output.suffix and not args.output.is_dir()
    if args.output is not None and not single:
        args.output.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> str | None:
        target = args.output if single else (args.output or source.parent) / (source.stem + extension)
        if target.exists() and not args.force:
            return None
        try:
            with tempfile.TemporaryDirectory(prefix=".lic-", dir=target.parent) as folder:
                temporary = Path(folder) / target.name
                convert(source, temporary)
                os.replace(temporary, target)
        except (OSError, ValueError, TypeError) as error:
            return f"{source}: {error}"
        return None

    with ThreadPoolExecutor(args.jobs) as pool:
        results: Iterable[str | None] = pool.map(one, args.files)
        failures = [r for r in tqdm(results, total=len(args.files), unit="file", disable=None) if r]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _info(args: argparse.Namespace) -> int:
    status = 0
    for path in args.files:
        try:
            info = lic.read_info(path)
            streams = api.stream_sizes(path)
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            status = 1
            continue
        size = path.stat().st_size
        kinds = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGB and alpha"}
        print(f"{path}: {info.width}×{info.height}, {kinds[info.channels]}, {info.bit_depth} bits")
        print(f"  model    {info.model}, weights {info.weights}")
        print(f"  size     {size} bytes, {8 * size / (info.width * info.height * info.frames):.4f} bits per pixel")
        for name in streams[0]:
            print(f"  stream   {name}: {sum(frame[name] for frame in streams)} bytes")
        if info.durations:
            print(f"  frames   {info.frames}, {sum(info.durations)} ms, loop {info.loop or 'for ever'}")
        for name in ("exif", "icc_profile", "xmp"):
            if (payload := getattr(info, name)) is not None:
                print(f"  {name:8} {len(payload)} bytes")
    return status


def _models(args: argparse.Namespace) -> int:
    for name, card in lic.models().items():
        kinds = [kind for kind in ("lossy", "lossless") if getattr(card, kind)]
        print(f"{name:17} {', '.join(kinds):16} {card.purpose} ({card.paper})")
    return 0


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="see `lic models`")
    parser.add_argument("--data", type=Path, required=True, help="a folder of pictures, or a file made by --pack")
    parser.add_argument("--folder", type=Path, help="the run's folder (runs/MODEL); it resumes from there")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=60, help="how long (%(default)s)")
    length.add_argument("--steps", type=int, help="how long, in steps")
    parser.add_argument("--batch", type=int, default=6, help="crops a step and process (%(default)s)")
    parser.add_argument("--side", type=int, default=128, help="pixels (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="the highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", help="auto, cpu, cuda, ... ($LIC_DEVICE, then auto)")
    parser.add_argument("--part", action="append", default=[], help="train only this part (may be repeated)")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--export", type=Path, help="when done, write the weights there")
    parser.add_argument(
        "--pack", type=Path, help="only pack the pictures into this file, for a machine that gets little"
    )


def _train(args: argparse.Namespace) -> int:
    from lic.training import data, launch

    if args.pack:
        count = data.pack(args.data, args.pack)
        print(f"{args.pack}: {count} pictures, {args.pack.stat().st_size} bytes")
        return 0
    return launch.launch(args)
