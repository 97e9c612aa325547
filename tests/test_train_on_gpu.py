"""The trainer for a GPU does what lic does: its kernels, made by a C++ compiler, beside lic's own trellis."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from lic import weights
from lic.evaluation import metrics
from lic.layers import integer, lifting, tiles, trellis, visibility
from lic.layers.amounts import unfolded
from lic.layers.band_prior import LEVELS, STEP_UNIT
from lic.layers.coefficients import logistic_bits, scaled
from lic.layers.colour import COLOUR, times
from lic.layers.integer import TrainableConv2d
from lic.models import wavelet
from lic.models.wavelet import Networks
from tests.lic.conftest import natural

pytestmark = pytest.mark.skipif(not shutil.which("g++") or torch.cuda.is_available(), reason="needs g++, and no GPU")
SIDE, PLAIN = 224, 2  # large enough for MS-SSIM, less a margin


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
    steps = torch.tensor([6, 40, 15]) * STEP_UNIT
    contrasts = torch.tensor(wavelet.CONTRASTS["visual"]).float() / 128
    matrices = torch.stack([COLOUR, COLOUR, COLOUR * contrasts]).float()
    return device.Batch(pixels, matrices, steps, torch.tensor([3.0, 0.0, 1.0]))


def test_bits_and_errors_are_those_of_lic(device, shipped, batch):
    networks = Networks(device.DeviceConv2d)
    networks.start_from(shipped)
    device.Parameters([*networks.priors, networks.post_filter, networks.visual_filter], torch.device("cpu"))
    got = device.Coder(networks, torch.device("cpu")).losses(batch, PLAIN)

    own = Networks(TrainableConv2d)
    own.start_from(shipped)
    prices = trellis.Prices(trellis.logistic_costs(), own.points, wavelet._TRAINING_LAGRANGIAN)
    levels = torch.tensor([[0] * LEVELS] * PLAIN + [wavelet.WEIGHTING["visual"]])
    masked = torch.tensor([0] * PLAIN + [1])
    bits = torch.zeros(3)

    def finer(this):
        by_place = visibility.finer(this.low, batch.steps.int().view(-1, 1, 1, 1), this.level)
        by_level = levels[:, this.level - 1].view(-1, 1, 1, 1)
        return this.of_bands(by_level + by_place * masked.view(-1, 1, 1, 1))

    def draft(this, c, mean, log_scale):
        expected = trellis.Expected.of(mean, log_scale, finer(this))
        symbols, quantisers = trellis.rounded(c * 2 ** (finer(this) / 4), expected, prices)
        return scaled(expected.values(symbols, quantisers, own.points), -finer(this))

    def code(this, c, mean, log_scale):
        expected, factor = trellis.Expected.of(mean, log_scale, finer(this)), 2 ** (finer(this) / 4)
        symbols, quantisers = trellis.quantise(c * factor, expected, prices)
        ends = (end / factor for end in expected.cells(symbols, quantisers))
        bits.add_(logistic_bits(*ends, mean, log_scale).sum((1, 2, 3)) / SIDE**2)
        return scaled(expected.values(symbols, quantisers, own.points), -finer(this))

    def added(picture):
        filters = [own.post_filter] * PLAIN + [own.visual_filter]
        pairs = zip(filters, picture.split(1), batch.steps.split(1), strict=True)
        return torch.cat([unfolded(post_filter(x, step)[:, 0]) for post_filter, x, step in pairs])

    with torch.no_grad():
        plan = tiles.plan(SIDE, SIDE, LEVELS)
        units = batch.steps.view(-1, 1, 1, 1) / STEP_UNIT
        pixels = batch.pixels.float()
        planes = torch.cat([times(m, x[None] - 128) for m, x in zip(batch.matrices, pixels, strict=True)]) / units
        aim = planes - batch.shares.view(-1, 1, 1, 1) * added(own._walk(planes, batch.steps, draft, plan))
        picture = own._walk(aim, batch.steps, code, plan)
        decoded = wavelet.Decoded(picture, planes - picture / 2**lifting.FRACTION, batch.steps)
        plain = wavelet.remaining(own.post_filter, wavelet.Decoded(*(x[:PLAIN] for x in decoded)))
        seen = (picture / 2**lifting.FRACTION + added(picture))[PLAIN:] * units[PLAIN:]
        seen = times(batch.matrices[PLAIN].inverse(), seen) + 128
    assert torch.allclose(got.bits, bits, rtol=0.025)  # the network's sums are bfloat16 here
    assert torch.allclose(torch.stack(got[1:4]), torch.stack(plain), rtol=0.025)
    inside = (slice(16, -16), slice(16, -16))
    before, after = (x[0].permute(1, 2, 0)[inside].round().clamp(0, 255).byte().numpy() for x in (pixels[PLAIN:], seen))
    assert got.seen.ms_ssim.item() == pytest.approx(metrics.ms_ssim(before, after), abs=0.002)
    assert 0.5 < got.seen.left.item() < 1


def test_what_it_trains_is_what_is_shipped(device, shipped, batch):
    networks = Networks(device.DeviceConv2d)
    networks.start_from(shipped)
    parameters = device.Parameters(
        [*networks.priors, networks.post_filter, networks.visual_filter], torch.device("cpu")
    )
    coder = device.Coder(networks, torch.device("cpu"))
    losses = coder.losses(batch, PLAIN)
    (losses.bits.sum() + losses.plain.sum() - losses.seen.ssimulacra2.sum()).backward()
    before = [x.clone() for x in parameters.values]
    parameters.update([1e-4] * 5)
    moved = [(x - y).abs() for x, y in zip(parameters.values, before, strict=True)]
    assert all(0 < float(x.max()) < 1.2e-4 for x in moved)  # Adam's first step is its rate
    parameters.use(parameters.values)
    parameters.write_back()
    for name, tensor in integer.shipped(networks).items():
        if name.endswith("weight"):
            layer = networks.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(tensor.float(), layer.integer_weight.detach().float())
