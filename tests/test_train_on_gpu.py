"""The trainer for a GPU does what lic does: its kernels, made by a C++ compiler, beside lic's own trellis."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from lic import weights
from lic.layers import integer, lifting, tiles, trellis
from lic.layers.band_prior import LEVELS, STEP_UNIT
from lic.layers.coefficients import logistic_bits
from lic.layers.colour import COLOUR, to_planes
from lic.layers.integer import TrainableConv2d
from lic.models import wavelet
from lic.models.wavelet import Networks
from tests.lic.conftest import natural

pytestmark = pytest.mark.skipif(not shutil.which("g++") or torch.cuda.is_available(), reason="needs g++, and no GPU")
SIDE = 128


@pytest.fixture(scope="module")
def device():
    sys.path.append(str(Path(__file__).parent.parent / "tools/train_on_gpu"))
    import device

    return device


@pytest.fixture(scope="module")
def shipped():
    return weights.load(Path(wavelet.__file__).parent, "wavelet")[0]


@pytest.fixture(scope="module")
def batch(device):
    pixels = torch.stack([torch.from_numpy(natural(SIDE, SIDE, 3, seed=seed)).permute(2, 0, 1) for seed in (0, 1, 2)])
    steps = torch.tensor([6, 15, 40]) * STEP_UNIT
    return device.Batch(pixels, COLOUR.float().expand(3, 3, 3), steps, torch.tensor([3.0, 1.0, 0.0]))


def test_bits_and_errors_are_those_of_lic(device, shipped, batch):
    networks = Networks(device.DeviceConv2d)
    networks.start_from(shipped)
    device.Parameters([*networks.priors, networks.post_filter], torch.device("cpu"))
    got = device.Coder(networks, torch.device("cpu")).losses(batch)

    own = Networks(TrainableConv2d)
    own.start_from(shipped)
    prices = trellis.Prices(trellis.logistic_costs(), own.points, wavelet._TRAINING_LAGRANGIAN)
    bits = torch.zeros(3)

    def code(this, c, mean, log_scale):
        expected = trellis.Expected.of(mean, log_scale)
        symbols, quantisers = trellis.quantise(c, expected, prices)
        bits.add_(logistic_bits(*expected.cells(symbols, quantisers), mean, log_scale).sum((1, 2, 3)) / SIDE**2)
        return expected.values(symbols, quantisers, own.points)

    with torch.no_grad():
        plan = tiles.plan(SIDE, SIDE, LEVELS)
        planes = to_planes(batch.pixels.float()) * STEP_UNIT / batch.steps.view(-1, 1, 1, 1)
        aim = planes - batch.shares.view(-1, 1, 1, 1) * own._added(planes, batch.steps, prices, plan)
        picture = own._walk(aim, batch.steps, code, plan)
        decoded = wavelet.Decoded(picture, planes - picture / 2**lifting.FRACTION, batch.steps)
        expected = torch.stack([bits, *wavelet.remaining(own.post_filter, decoded)])
    assert torch.allclose(torch.stack([*got]), expected, rtol=0.025)  # the network's sums are bfloat16 here


def test_what_it_trains_is_what_is_shipped(device, shipped, batch):
    networks = Networks(device.DeviceConv2d)
    networks.start_from(shipped)
    parameters = device.Parameters([*networks.priors, networks.post_filter], torch.device("cpu"))
    coder = device.Coder(networks, torch.device("cpu"))
    coder.losses(batch).bits.sum().backward()
    before = [x.clone() for x in parameters.values]
    parameters.update([1e-4] * 4)
    moved = [(x - y).abs() for x, y in zip(parameters.values, before, strict=True)]
    assert all(0 < float(x.max()) < 1.2e-4 for x in moved)  # Adam's first step is its rate
    parameters.use(parameters.values)
    parameters.write_back()
    for name, tensor in integer.shipped(networks).items():
        if name.endswith("weight"):
            layer = networks.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(tensor.float(), layer.integer_weight.detach().float())
