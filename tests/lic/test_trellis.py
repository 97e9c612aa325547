"""Trellis-coded quantisation: a path that the decoder can follow, and the cheapest there is."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lic.entropy import Decoder, Encoder
from lic.errors import FormatError
from lic.layers import lifting, trellis
from lic.layers.coefficients import SCALE_STEPS
from lic.layers.trellis import Counts, Expected, Prices, Tables

NO_POINTS = torch.zeros(trellis.POINTS)


def expected(generator: torch.Generator, count: int, log_scale: tuple[float, float], finer: int = 0) -> Expected:
    """Of random means and scales, as exact as a network's."""
    mean = (torch.randn(count, generator=generator) * 2048).round() / 1024
    low, high = log_scale
    scale = ((torch.rand(count, generator=generator) * (high - low) + low) * 256).round() / 256
    return Expected.of(mean, scale, finer)


TABLES = Tables.unpack(Counts().packed())


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(0, 300),
    seed=st.integers(0, 1000),
    width=st.sampled_from([0.1, 1.0, 30.0, 3000.0]),
    finer=st.integers(-16, 16),
)
def test_what_is_quantised_and_coded_is_decoded(count, seed, width, finer):
    generator = torch.Generator().manual_seed(seed)
    what = expected(generator, count, (-1.0, 1.5), finer)
    values = torch.randn(count, generator=generator) * width
    symbols, quantisers = trellis.quantise(values, what, Prices(TABLES.bits(), NO_POINTS, 0.1))
    encoder = Encoder()
    TABLES.encode(encoder, what.table, symbols, quantisers)
    read = TABLES.decode(Decoder(encoder.bytes()), what.table)
    assert torch.equal(read[0], symbols)
    assert torch.equal(read[1], quantisers)
    assert not quantisers[what.table < trellis.FIRST * trellis.MEANS].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_path_is_cheaper(seed):
    costs = np.random.default_rng(seed).random((4, 17), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trellis, "_LENGTH", 8)  # so that there are three columns
        choices = trellis._cheapest_path(costs)
    for column in range(3):
        own = costs[:, column::3]
        state, sums = 0, []
        for parities in itertools.product((0, 1), repeat=own.shape[1]):
            state, total = 0, 0.0
            for row, parity in enumerate(parities):
                total += own[2 * (state & 1) + parity, row]
                state = trellis._FOLLOWING[state, parity]
            sums.append(total)
        assert np.isclose(own[choices[column::3], range(own.shape[1])].sum(), min(sums))


def test_errors_that_count_more_are_smaller():
    generator = torch.Generator().manual_seed(0)
    what = expected(generator, 4000, (-1.0, 0.5))
    values, prices = 2 * torch.randn(4000, generator=generator), Prices(TABLES.bits(), NO_POINTS, 0.1)
    weights = torch.ones(4000)
    plain = trellis.quantise(values, what, prices)
    same = trellis.quantise(values, what, prices._replace(weights=weights))
    assert all(torch.equal(x, y) for x, y in zip(plain, same, strict=True))
    weights[::2] = 4
    weighted = trellis.quantise(values, what, prices._replace(weights=weights))
    before, after = ((values - what.values(*x, NO_POINTS) / 2**lifting.FRACTION).square() for x in (plain, weighted))
    assert after[::2].mean() < 0.9 * before[::2].mean()
    assert after[1::2].mean() > before[1::2].mean()


def test_the_cheaper_of_two_symbols():
    generator = torch.Generator().manual_seed(3)
    what = expected(generator, 500, (-1.0, 1.5))
    values, prices = 3 * torch.randn(500, generator=generator), Prices(TABLES.bits(), NO_POINTS, 0.1)
    symbols, quantisers = trellis.rounded(values, what, prices)
    assert not quantisers.any()
    at = what.positions(values)
    beside = [(at / 2).floor().int(), (at / 2).ceil().int()]
    costs = torch.stack([prices.of(symbol, quantisers, at, what) for symbol in beside])
    assert torch.equal(symbols, torch.stack(beside).gather(0, costs.argmin(0)[None])[0])
    assert not torch.equal(symbols, (at / 2).round().int())


def test_cells_leave_no_gap():
    symbols = torch.arange(-40, 41)
    for quantiser in (0, 1):
        lower, upper = trellis.cell(symbols, torch.full_like(symbols, quantiser))
        at = trellis.position(symbols, torch.full_like(symbols, quantiser))
        assert torch.equal(upper[:-1], lower[1:])
        assert bool(((lower < at) & (at < upper)).all())


def test_errors_are_smaller_than_those_of_a_cube():
    generator = torch.Generator().manual_seed(0)
    count = 40_000
    what = expected(generator, count, (0.8, 1.0))
    values = torch.randn(count, generator=generator) * 10
    symbols, quantisers = trellis.quantise(values, what, Prices(torch.zeros(2 * trellis.TABLES, 33), NO_POINTS, 0.0))
    error = values - what.values(symbols, quantisers, NO_POINTS) / 128
    apart = 144 / 128  # how far the points of a quantiser are
    assert 0.060 < error.square().mean() / apart**2 < 0.069  # 1 / 12 for a single quantiser; 1 / (2 pi e) at best


def test_points_move_what_is_decoded():
    generator = torch.Generator().manual_seed(1)
    what = expected(generator, 500, (-1.0, 1.0))
    symbols = torch.randint(-3, 4, (500,), generator=generator).int()
    quantisers = (what.table >= trellis.FIRST * trellis.MEANS).int() * torch.randint(
        0, 2, (500,), generator=generator
    ).int()
    points = torch.randint(-20, 20, (trellis.POINTS,), generator=generator).float()
    moved = what.values(symbols, quantisers, points) - what.values(symbols, quantisers, NO_POINTS)
    at = trellis.point_index(what.table + trellis.TABLES * quantisers, symbols)
    assert torch.equal(moved, what.sign * points.int()[at])


@pytest.mark.parametrize("finer", [0, -7, 16])
def test_nearest_is_beside_the_mean(finer):
    generator = torch.Generator().manual_seed(2)
    mean = (torch.randn(2000, generator=generator) * 4096).round() / 1024
    what = Expected.of(mean, torch.rand(2000, generator=generator).mul(512).round() / 256 - 1, finer)
    at = what.positions(mean * 2 ** (finer / 4))
    assert bool((at > -0.2).all() and (at < 1.2).all())
    assert {*what.unit.tolist()} <= {64, 72}


def test_symbols_cost_what_they_were_said_to():
    generator = torch.Generator().manual_seed(3)
    what = expected(generator, 60_000, (-1.0, 0.5))
    widths = torch.tensor(SCALE_STEPS)[what.table // 5]
    values = what.values(*(torch.zeros_like(what.table),) * 2, NO_POINTS) / 128 + torch.randn(60_000) * 1.5 * widths
    symbols, quantisers = trellis.quantise(values, what, Prices(TABLES.bits(), NO_POINTS, 0.1))
    encoder = Encoder()
    TABLES.encode(encoder, what.table, symbols, quantisers)
    costs = TABLES.bits()[(what.table + trellis.TABLES * quantisers).long(), symbols.clamp(-16, 16).long() + 16]
    assert 8 * len(encoder.bytes()) == pytest.approx(float(costs.sum()), rel=0.01)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=300), seed=st.integers(0, 1000), incomplete=st.booleans())
def test_damage_is_an_error_or_symbols(data, seed, incomplete):
    what = expected(torch.Generator().manual_seed(seed), 200, (-1.0, 1.5))
    try:
        symbols, quantisers = TABLES.decode(Decoder(data, incomplete), what.table)
    except FormatError:
        return
    assert symbols.abs().max() < 2**23
    assert set(quantisers.unique().tolist()) <= {0, 1}


def test_an_even_number_that_was_escaped_is_damage():
    what = expected(torch.Generator().manual_seed(1), 1, (0.0, 0.0))
    for symbol in (17, 18, 31, -40):
        encoder = Encoder()
        TABLES.encode(encoder, what.table, torch.tensor([symbol], dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
        if symbol % 2:
            assert TABLES.decode(Decoder(encoder.bytes()), what.table)[0].item() == symbol
        else:
            with pytest.raises(FormatError, match="even"):
                TABLES.decode(Decoder(encoder.bytes()), what.table)


def test_costs_are_those_of_the_tables():
    """Likely symbols are cheap, and their probabilities sum to one."""
    costs = TABLES.bits()
    assert costs.shape == (2 * trellis.TABLES, 2 * trellis.REACH + 1)
    narrow = 2.0 ** -costs.view(2, len(SCALE_STEPS), -1, 2 * trellis.REACH + 1)[:, : trellis.BROAD]
    assert torch.allclose(narrow.sum(3), torch.tensor(1.0), atol=1e-3)
