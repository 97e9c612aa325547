"""`lic train`: repeatable, resumable, in several processes, from folders and packed files, to weights that work."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from torch import Tensor, nn

from lic import LicError, cli
from lic.layers import reversible, tiles
from lic.layers.coefficients import logistic_bits
from lic.layers.integer import TrainableConv2d
from lic.models import wavelet, wavelet_lossless
from lic.training import data, loop
from tests.lic.conftest import natural


class Toy(loop.Trainable):
    """A network that learns to copy; it may break down at a step, once."""

    breaks_at: int | None = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.calls = 0

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.calls += self.training
        if self.calls == self.breaks_at:
            raise KeyboardInterrupt
        noise = torch.rand(pixels.shape, generator=generator) - 0.5
        loss = (self.convolution((pixels + noise) / 255) - pixels / 255).square().mean()
        return {"loss": loss, "decibels": -10 * torch.log10(loss.detach())}

    def shipped(self, pictures: list[data.Pixels]) -> dict[str, Tensor]:
        return self.state_dict()

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        self.load_state_dict(shipped)


PICTURES = data.Pictures([natural(48, 64, 3, seed=s) for s in range(5)], [natural(48, 64, 3, seed=9)])
CPU = torch.device("cpu")


def options(**changes) -> loop.Options:
    return loop.Options(**{"steps": 12, "batch": 2, "side": 16, "rate": 1e-2, **changes})


def weights(run: loop.Run) -> Tensor:
    return torch.cat([run.networks.state_dict()[k].flatten() for k in ("convolution.weight", "convolution.bias")])


def test_a_run_repeats_itself(tmp_path):
    runs = [loop.train(Toy(), PICTURES, tmp_path / str(i), options(seed=seed), CPU) for i, seed in enumerate((1, 1, 2))]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 4)
    whole = loop.train(Toy(), PICTURES, tmp_path / "whole", options(), CPU)
    broken = Toy()
    broken.breaks_at = 7
    with pytest.raises(KeyboardInterrupt):
        loop.train(broken, PICTURES, tmp_path / "broken", options(), CPU)
    resumed = Toy()
    run = loop.train(resumed, PICTURES, tmp_path / "broken", options(), CPU)
    assert resumed.calls == 8  # from the checkpoint after 4 of 12
    assert torch.equal(weights(run), weights(whole))
    assert torch.equal(run.average["convolution.bias"], whole.average["convolution.bias"])


def test_training_lowers_the_loss_and_logs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 20)
    monkeypatch.setattr(loop, "VALIDATE_EVERY", 40)
    loop.train(Toy(), PICTURES, tmp_path, options(steps=200), CPU)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(20, 201, 20))
    assert rows[-1]["loss"] < rows[0]["loss"] / 4
    assert rows[-1]["validation_decibels"] > rows[1]["validation_decibels"]
    assert rows[-1]["rate"] < max(row["rate"] for row in rows) / 4


def test_a_run_by_time_ends(tmp_path):
    run = loop.train(Toy(), PICTURES, tmp_path, options(steps=None, minutes=0.01), CPU)
    assert run.done >= 1
    assert run.step > 1


def test_the_learning_rate_warms_up_holds_and_decays():
    rates = [loop.learning_rate(options(), step, step / 4000) for step in range(4000)]
    assert rates[0] < rates[100] < rates[199] == rates[900] == 1e-2
    assert math.isclose(rates[-1], 1e-4, rel_tol=0.01)


def _rank(rank: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="29511", RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    run = loop.train(Toy(), PICTURES, folder / "run", options(), CPU)
    torch.save(weights(run), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_one_network(tmp_path):
    torch.multiprocessing.spawn(_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    alone = weights(loop.train(Toy(), PICTURES, tmp_path / "alone", options(), CPU))
    assert not torch.equal(first, alone)  # the second's pictures count


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(natural(80, 96, 3, seed=seed)).save(folder / f"{seed}.png")
    (folder / "notes.txt").write_text("not a picture")
    Image.fromarray(natural(20, 20, 3)).save(folder / "small.png")
    return folder


def test_pictures_come_from_a_folder_or_a_packed_file(folder, tmp_path):
    pictures = data.load(folder, 64)
    assert len(pictures.training) == 3
    assert len(pictures.validation) == 1
    packed = tmp_path / "packed"
    assert data.pack(folder, packed) == 5
    again = data.load(packed, 64)
    assert len(again.training) == 3
    error = np.abs(again.training[0].astype(int) - pictures.training[0])
    assert error.mean() < 4


def test_a_packed_file_stays_within_its_limit(folder, tmp_path):
    packed = tmp_path / "packed"
    count = data.pack(folder, packed, limit=8_000)
    assert 0 < count < 5
    assert packed.stat().st_size <= 8_000


def test_too_few_pictures_are_refused(folder, tmp_path):
    with pytest.raises(LicError, match="training needs two"):
        data.load(folder, 500)
    (tmp_path / "text").write_text("x")
    with pytest.raises(LicError, match="neither a folder"):
        data.load(tmp_path / "text", 16)


def test_crops_have_the_side_asked_for_whatever_the_picture_s():
    crops = data.crops(PICTURES.training, np.random.default_rng(0), 20, 40)
    assert crops.shape == (20, 3, 40, 40)
    assert 0 <= crops.min() < crops.max() <= 255
    assert any((crop[0] == crop[1]).all() for crop in data.crops(PICTURES.training, np.random.default_rng(0), 200, 8))


def test_a_model_says_how_many_crops_are_shrunk(tmp_path, monkeypatch):
    shares = []
    crops = data.crops
    monkeypatch.setattr(data, "crops", lambda *a: shares.append(a[4]) or crops(*a))
    toy = Toy()
    toy.shrunk = 1.0
    loop.train(toy, PICTURES, tmp_path, options(steps=2), CPU)
    assert shares == [1.0, 1.0]
    grain = [np.random.default_rng(9).integers(0, 256, (128, 128, 3), np.uint8)]
    sharp, soft = (crops(grain, np.random.default_rng(0), 20, 16, share).std() for share in (0.0, 1.0))
    assert soft < 0.8 * sharp


class Twins(Toy):
    """Two parts, one of which nothing may train."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 3, 1)
        self.fixed = nn.Conv2d(3, 3, 1).requires_grad_(False)

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        losses = super().forward(pixels, generator)
        return losses | {"loss": losses["loss"] + self.other(self.fixed(pixels / 255)).square().mean()}


@pytest.mark.parametrize("part", [(), ("convolution",), ("other",), ("convolution", "other")])
def test_parts_can_be_trained_alone(tmp_path, part):
    before = {k: v.clone() for k, v in Twins().state_dict().items()}
    twins = Twins()
    loop.train(twins, PICTURES, tmp_path, options(part=part), CPU)
    changed = {name.split(".")[0] for name, value in twins.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == (set(part) or {"convolution", "other"})


def test_a_part_that_this_command_does_not_train(tmp_path):
    networks = wavelet.WaveletCodec.trainable()
    with pytest.raises(LicError, match="does not train visual_filter"):
        loop.Run(networks, tmp_path, options(part=["visual_filter"]), CPU)


def test_a_part_that_is_not_there(tmp_path):
    with pytest.raises(LicError, match="no part 'filter', but convolution"):
        loop.train(Toy(), PICTURES, tmp_path, options(part=["filter"]), CPU)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (["priors"], {"priors.0", "priors.1", "priors.2", "points"}),
        (["priors.1", "priors.2"], {"priors.1", "priors.2"}),
        (["priors.2"], {"priors.2"}),
        (["post_filter"], {"post_filter"}),
    ],
)
def test_parts_of_the_default_model_train_alone(folder, tmp_path, part, expected):
    networks = wavelet.WaveletCodec.trainable()
    before = {k: v.clone() for k, v in networks.state_dict().items()}
    run = loop.train(networks, data.load(folder, 64), tmp_path, options(steps=2, batch=1, side=64, part=part), CPU)
    after = run.networks.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(name.startswith(tuple(expected)) for name in changed)
    assert all(any(name.startswith(start) for name in changed) for start in expected)


@pytest.mark.parametrize("part", ["priors.0", "priors.1"])
def test_the_lossless_model_counts_the_bits_of_what_learns(part, monkeypatch):
    """Of all levels together, and of those of one prior alone: as coding a picture would."""
    torch.manual_seed(0)
    networks = wavelet_lossless.Networks(TrainableConv2d)
    planes = torch.from_numpy(natural(72, 96, 3).astype(np.int32)).permute(2, 0, 1)[None] - 128
    monkeypatch.setattr(wavelet_lossless.cameras, "marked", lambda *_: planes)
    low, bands = reversible.analyse(planes, wavelet_lossless.LEVELS)
    bits = {"priors.0": 0.0, "priors.1": 0.0}

    def code(this, mean, log_scale):
        q = this.of(bands)
        costs = logistic_bits(q - 0.5, q + 0.5, mean, log_scale)
        bits["priors.0" if this.level == 1 else "priors.1"] += float(costs.sum()) / (72 * 96)
        return q << 7

    with torch.no_grad():
        networks.walk(low, 72, 96, code, tiles.plan(72, 96, wavelet_lossless.LEVELS), False, 0)
        whole = networks(planes, torch.Generator())["bits_per_pixel"]
        networks.requires_grad_(False)
        networks.get_submodule(part).requires_grad_(True)
        alone = networks(planes, torch.Generator())["bits_per_pixel"]
    assert float(whole) == pytest.approx(sum(bits.values()), rel=1e-5)
    assert float(alone) == pytest.approx(bits[part], rel=1e-5)


def test_the_command_trains_exports_and_starts_from_weights(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lic.training.launch.CALIBRATION_PICTURES", 1)
    exported = tmp_path / "wavelet.safetensors"
    common = ["train", "wavelet", "--data", str(folder), "--batch", "1", "--side", "64"]
    assert cli.main([*common, "--folder", str(tmp_path / "run"), "--steps", "2", "--export", str(exported)]) == 0
    digest = capsys.readouterr().out.split()[-1]
    (tmp_path / "models").mkdir()
    exported.rename(tmp_path / "models" / exported.name)
    monkeypatch.setattr(sys.modules[wavelet.__name__], "__file__", str(tmp_path / "models" / "wavelet.py"))
    codec = wavelet.WaveletCodec(CPU)
    assert codec.weights == digest
    start = ["--start", str(tmp_path / "models" / exported.name)]
    assert cli.main([*common, "--folder", str(tmp_path / "second"), "--steps", "1", *start]) == 0


def test_torchrun_trains_a_model_in_two_processes(folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lic", "train", "wavelet"]
    command += ["--data", folder, "--folder", tmp_path / "run", "--steps", "2", "--batch", "1", "--side", "64"]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("corner", [(0, 0), (60, 100), (96, 160)])
def test_the_part_that_training_codes_is_what_the_whole_would_be(corner):
    torch.manual_seed(0)
    networks = wavelet.WaveletCodec.trainable()
    planes, step = 10 * torch.randn(1, 3, 256, 320), torch.tensor([1280])
    part = tiles.Area(*corner, corner[0] + 160, corner[1] + 160)
    plan = tiles.plan(256, 320, wavelet.LEVELS)

    def exact(_, c, mean, log_scale):
        return (c * 128).round().int()

    pictures = []
    for levels in (plan, wavelet._partly(plan, part, 256, 320)):
        with torch.no_grad():
            picture = networks._walk(planes, step, exact, levels)
        pictures.append(picture[part.within(levels[-1].area.finer(256, 320))])
    assert pictures[0].shape == (1, 3, 160, 160)
    assert torch.equal(*pictures)
