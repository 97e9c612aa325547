"""What a lossless file adds to the prior's predictions."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lic
from lic.entropy import Decoder, Encoder
from lic.layers import regression
from lic.layers.band_prior import Pass
from lic.layers.lifting import FRACTION
from lic.layers.regression import Fit, Neighbours, Regression
from lic.layers.tiles import Area
from lic.models.wavelet_lossless import REGRESSION_EFFORT
from tests.lic.conftest import natural

terms = st.lists(st.tuples(st.integers(0, 431), st.integers(-127, 127)), max_size=24)


@given(st.lists(st.tuples(st.integers(-8, 7), terms), min_size=3, max_size=3))
def test_regressions_come_back(drawn):
    regressions = [Regression(scale, [n for n, _ in pairs], [c for _, c in pairs]) for scale, pairs in drawn]
    encoder = Encoder()
    regression.write(encoder, regressions, 432)
    assert regression.read(Decoder(encoder.bytes()), 3, 432) == regressions


def first_pass(low: torch.Tensor) -> Pass:
    """Of a tile whose low band that is, (1, 3, h, w) in units."""
    return Pass(1, 0, Area(0, 0, *low.shape[2:]), low.int() << FRACTION, (0, 0), slice(0, 1))


def neighbours(low: torch.Tensor) -> Neighbours:
    """Those of its first pass."""
    out = Neighbours()
    assert out.enter(first_pass(low))
    return out


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31))
def test_the_widest_numbers_are_summed_exactly(seed):
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(rng.choice([-(2**20), 2**20], (1, 3, 64, 64)))
    known = neighbours(low)
    every = known.at(torch.arange(32 * 32)).long()  # of powers of two: exact in float32
    for numbers in (rng.integers(0, len(known), 24).tolist(), [4] * 24):
        found = known.weighted(Regression(0, numbers, [127] * 24))
        assert found.dtype == torch.int32
        assert torch.equal(found.long(), (every[:, numbers].sum(1) * 127 + 512 >> 10).view(32, 32))


def test_what_hangs_on_neighbours_is_found():
    rng = np.random.default_rng(0)
    low = torch.from_numpy(rng.integers(-40, 41, (1, 3, 80, 80)))
    known, this = neighbours(low), first_pass(low)
    cells = torch.arange(40 * 40)
    x = known.at(cells) / 2**FRACTION
    value = (0.5 * x[:, 4] - 0.25 * x[:, 31] + torch.from_numpy(rng.normal(0, 0.5, 1600))).round().int()
    values = torch.stack([value, torch.from_numpy(rng.integers(-1, 2, 1600))]).int().view(1, 2, 40, 40)
    means, scales = torch.zeros_like(values), torch.full_like(values, 40)
    first, second = Fit().regressions(known, this, values, means, scales)
    assert sorted(first.neighbours) == [4, 31]
    assert {n: c / 64 for n, c in zip(first.neighbours, first.coefficients, strict=True)} == {4: 0.5, 31: -0.25}
    assert first.scale < -4
    assert not second.neighbours


def test_a_picture_of_interpolated_rows_takes_fewer_bytes():
    pixels = natural(151, 170, 3)
    pixels[1:-1:2] = (pixels[:-2:2].astype(int) + pixels[2::2] + 1) // 2  # as deinterlaced video has it
    coded = lic.encode(pixels, lossless=True)
    assert np.array_equal(lic.decode(coded).pixels, pixels)
    assert np.array_equal(lic.decode(coded, region=(20, 30, 100, 90)).pixels, pixels[30:90, 20:100])
    quick = lic.encode(pixels, lossless=True, effort=REGRESSION_EFFORT - 1)
    assert np.array_equal(lic.decode(quick).pixels, pixels)
    assert len(coded) < 0.95 * len(quick)
