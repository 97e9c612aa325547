"""Amounts of the post-filter's corrections: what the encoder finds is best, and comes back from bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lic.errors import FormatError
from lic.layers.amounts import CORRECTIONS, Amounts, BestAmounts, least_squares, unfolded
from lic.layers.tiles import Area
from lic.layers.trellis import Counts, Tables

TABLES = Tables.unpack(Counts().packed()).shared


@settings(max_examples=40, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    size=st.integers(0, 16),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0, 1, 20, 300]),
)
def test_amounts_come_back(channels, height, width, size, seed, spread):
    rows, columns = (-(-side // (256 << size)) for side in (height, width))
    usual = Amounts.usual(channels).numbers.numpy()
    random = np.random.default_rng(seed).integers(-spread, spread + 1, (CORRECTIONS, channels, rows, columns))
    amounts = Amounts(random + usual, size)
    again = Amounts.from_bytes(amounts.to_bytes(TABLES), TABLES, channels, height, width)
    if spread:
        assert torch.equal(amounts.numbers, again.numbers)
    area = Area(height // 4 * 2, width // 6 * 2, min(height, height // 2 + 300), min(width, width // 3 + 300))
    sides = area.coarser().bottom - area.coarser().top, area.coarser().right - area.coarser().left
    corrections = torch.randn(1, CORRECTIONS, 12, *sides, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(amounts.mixed(corrections, area), again.mixed(corrections, area))


def test_the_usual_ones_take_no_bytes_and_are_the_first_correction():
    assert Amounts.usual(3).to_bytes(TABLES) == b""
    corrections = torch.randint(-500, 500, (1, CORRECTIONS, 12, 10, 15)) / 64
    mixed = Amounts.from_bytes(b"", TABLES, 3, 1000, 1000).mixed(corrections, Area(900, 800, 920, 830))
    assert torch.equal(mixed, (unfolded(corrections)[:, 0] * 64).int())


@pytest.mark.parametrize("channels", [1, 3])
def test_each_pixel_takes_its_blocks_amounts(channels):
    """As docs/format.md says it, pixel by pixel."""
    generator = torch.Generator().manual_seed(3)
    numbers = np.random.default_rng(3).integers(-40, 40, (CORRECTIONS, channels, 2, 3))
    coded = torch.randn(1, CORRECTIONS, 12, 31, 43, generator=generator)
    area = Area(240, 500, 301, 585)  # over four blocks
    corrections = (unfolded(coded) * 64).round()
    expected = torch.zeros(3, 61, 85, dtype=torch.int32)
    for plane, row, column in np.ndindex(channels, 61, 85):
        block = (240 + row) // 256, (500 + column) // 256
        total = sum(int(numbers[(k, plane, *block)]) * int(corrections[0, k, plane, row, column]) for k in range(4))
        expected[plane, row, column] = (total + 8) >> 4
    assert torch.equal(Amounts(numbers, 0).mixed(coded, area)[0], expected)


@pytest.mark.parametrize("stream", [b"\x01", b"\x11\x05", b"\x00\x40abc"])
def test_damage_is_an_error(stream):
    with pytest.raises(FormatError, match="amounts"):
        Amounts.from_bytes(stream, TABLES, 3, 100, 100)


def halves(height: int, width: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Folded corrections; and an error: half of the first in the picture's left part, and in the right part all of
    the first and -1/4 of the second."""
    generator = torch.Generator().manual_seed(5)
    coded = torch.randn(1, CORRECTIONS, 12, height // 2, width // 2, generator=generator) / 8
    corrections = unfolded(coded)
    left = torch.arange(width) < 512
    error = torch.where(left, corrections[:, 0] / 2, corrections[:, 0] - corrections[:, 1] / 4)
    return coded, error + noise * torch.randn(error.shape, generator=generator)


def test_the_encoder_finds_what_each_block_needs():
    coded, error = halves(700, 900, 0.1)
    corrections = unfolded(coded)
    whole = Area(0, 0, 700, 900)
    found = []
    for side in (100, 512):
        best = BestAmounts(3, 700, 900)
        for part in whole.squares(side):
            here = part.within(whole)
            best.add(corrections[here], error[here], part)
        found.append(best.best(TABLES, 0.08))
    amounts, cost = found[0]
    assert torch.equal(amounts.numbers, found[1][0].numbers)
    left = (amounts.mixed(coded, whole) / 64 - error).square().sum()
    assert cost == pytest.approx(float(left) + 0.08 * 8 * len(amounts.to_bytes(TABLES)), rel=0.01)
    left = error - corrections[:, 0]
    assert amounts.mixed(coded, whole).div(64).sub(error).square().mean() < 0.011 < left.square().mean()
    assert amounts.numbers[:2, 0, 0, 0].tolist() == [8, 0]
    assert amounts.numbers[:2, 0, 0, -1].tolist() == [16, -4]


def test_what_hardly_helps_is_not_worth_its_bytes():
    corrections = unfolded(halves(300, 300, 0)[0])
    error = corrections[:, 0] + 0.1 * torch.randn(1, 3, 300, 300, generator=torch.Generator().manual_seed(6))
    best = BestAmounts(3, 300, 300)
    best.add(corrections, error, Area(0, 0, 300, 300))
    assert best.best(TABLES, 0.08)[0].to_bytes(TABLES) == b""


def test_unfolded_is_the_inverse_of_folding():
    x = torch.randn(2, 3, 10, 14)
    squares = torch.stack([x[..., row::2, column::2] for row in (0, 1) for column in (0, 1)], 1)
    assert torch.equal(unfolded(squares.flatten(1, 2)), x)


def test_least_squares_leave_nothing_that_corrections_explain():
    corrections = torch.randn(2, CORRECTIONS, 3, 40, 40, generator=torch.Generator().manual_seed(7))
    wanted = torch.randn(2, CORRECTIONS, 3, 1, 1, generator=torch.Generator().manual_seed(8))
    assert torch.allclose(least_squares(corrections, (wanted * corrections).sum(1)), wanted, atol=2e-3)
    usual = least_squares(torch.zeros(1, CORRECTIONS, 3, 8, 8), torch.randn(1, 3, 8, 8))
    assert torch.equal(usual[0, :, 0, 0, 0], torch.eye(CORRECTIONS)[0])
