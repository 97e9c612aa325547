"""Soft-to-hard vector quantisation: soft assignments become hard ones, histograms become tables."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lic.entropy import PRECISION
from lic.layers import codebook
from lic.layers.codebook import ANCHORS, CENTRES, LAST, Codebook
from lic.layers.gain import OCTAVE
from lic.models import softvq

ROWS = 3


def filled(dimension: int = 2) -> tuple[Codebook, torch.Tensor]:
    """A codebook whose rows have seen vectors of other scales each, and the vectors (ROWS, 500, dimension)."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(ROWS, 500, dimension, generator=generator) * torch.tensor([0.3, 1.0, 4.0])[:, None, None]
    book = Codebook(ROWS, codebook.first_centres(dimension, 3.0))
    for position in (0.5, 2.5, 3.5):
        book.soft(vectors, torch.tensor(position), torch.tensor(8.0))
    return book, vectors


@pytest.mark.parametrize("centres", [codebook.companded(), *(codebook.first_centres(d, 3.0) for d in (2, 4))])
def test_first_centres_are_distinct_and_begin_with_zero(centres):
    assert centres.shape[0] == CENTRES == len(torch.unique(centres, dim=0))
    assert not centres[0].any()


def test_assignments_harden_with_sharpness():
    book, vectors = filled()
    position = torch.tensor(1.25)
    symbols = book.nearest(vectors, position)
    before = book.counts.clone()
    hardness, gaps = [], []
    for sharpness in (1.0, 4.0, 16.0, 1e5):
        book.counts.copy_(before)
        values, bits, largest, moved = book.soft(vectors, position, torch.tensor(sharpness))
        hardness.append(float(largest.mean()))
        gaps.append(float(moved.square().mean()))
    assert hardness == sorted(hardness)
    assert gaps == sorted(gaps, reverse=True)
    assert hardness[-1] > 0.999
    book.counts.copy_(before)
    hard = book.centres_at(position)[symbols]
    assert (values - hard).abs().mean() < 1e-3
    assert torch.allclose(bits, book.bits_at(position).gather(1, symbols).sum(), rtol=1e-3)


def test_gradients_reach_vectors_and_centres():
    book, vectors = filled()
    vectors.requires_grad_()
    values, bits, *_ = book.soft(vectors, torch.tensor(0.5), torch.tensor(4.0))
    (values.square().sum() + bits).backward()
    assert vectors.grad.abs().sum() > 0
    assert book.centres.grad[:2].abs().sum() > 0
    assert not book.centres.grad[2:].any()


@pytest.mark.parametrize("position", [0, 100, 256, 700, LAST])
def test_one_hot_assignments_cost_what_tables_say(position):
    book, vectors = filled()
    shipped = book.shipped_bits()
    book.start_from(shipped)
    octaves = torch.tensor(position / OCTAVE)
    symbols = book.nearest(vectors, octaves)
    told = book.bits_at(octaves).gather(1, symbols).sum(1)
    for row, table, bits in zip(symbols.numpy(), codebook.tables(shipped.numpy(), position), told, strict=True):
        assert table.size == CENTRES
        assert abs(table.bits()[1 + row].sum() / float(bits) - 1) < 0.01


def test_what_bits_count_for_saves_bits(monkeypatch):
    book, vectors = filled()
    position = torch.tensor(2.5)
    costs, errors = [], []
    for lagrangian in (0.0, 0.1, 0.5):
        monkeypatch.setattr(codebook, "LAGRANGIAN", lagrangian)
        symbols = book.nearest(vectors, position)
        costs.append(float(book.bits_at(position).gather(1, symbols).sum()))
        errors.append(float((book.centres_at(position)[symbols] - vectors).square().sum().detach()))
    assert costs == sorted(costs, reverse=True)
    assert errors == sorted(errors)


@settings(deadline=None, max_examples=30)
@given(arrays.arrays(np.uint8, (ANCHORS, 2, CENTRES)), st.integers(0, LAST))
def test_any_bits_make_tables(bits, position):
    family = codebook.tables(bits, position)
    assert len(family) == 2
    for table in family:
        assert table.frequencies.sum() == 2**PRECISION
        assert table.frequencies.min() >= 1
    between = bits[min(position // OCTAVE, ANCHORS - 2) :][:2].astype(int)
    weights = between[0] * (OCTAVE - position % OCTAVE) + between[1] * (position % OCTAVE)
    if position < LAST:
        rows = zip(family, weights, strict=True)
        assert all(table.frequencies[1 + row.argmin()] == table.frequencies[1:].max() for table, row in rows)


def test_vectors_hold_each_latent_once():
    latents = torch.arange(768 * 6).view(768, 2, 3)
    vectors = softvq._vectors(latents)
    assert torch.equal(softvq._latents(vectors, (2, 3)), latents)
    quads = vectors[2] % (768 * 6) // 6
    assert torch.equal(quads - quads[..., :1], torch.arange(4).expand_as(quads))  # 2x2 neighbours, or a place's bands
    assert (quads[..., 0] % 4 == 0).all()


def test_annealing_ends():
    networks = softvq.Networks()
    found = []
    for steps in (0, softvq._ANNEALING // 2, softvq._ANNEALING, 9 * softvq._ANNEALING):
        networks.steps.fill_(steps)
        found.append(float(networks.sharpness()))
    assert found[0] < found[1] < found[2] == found[3]
