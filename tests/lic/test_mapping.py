"""What a lossless file codes of a picture."""

import io
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lic
from lic.codec import PlaneShape
from lic.container import Reader
from lic.layers.mapping import Mapping
from lic.layers.tiles import Area
from tests.lic.conftest import natural


@settings(deadline=None)
@given(
    st.sampled_from([1, 3]),
    st.sampled_from([8, 16]),
    st.lists(st.integers(0, 255), min_size=1, max_size=9),
    st.integers(0, 2**31),
)
def test_samples_come_back(channels, depth, values, seed):
    shape = PlaneShape(channels, 30, 41, depth)
    scale = 257 if depth == 16 else 1
    samples = np.random.default_rng(seed).choice(values, (channels, 30, 41)).astype(np.int32) * scale
    mapping, planes = Mapping.of(samples, shape)
    assert planes.shape == (3, 30, 41)
    assert planes.dtype == torch.int32
    coded = mapping.coded()
    back = Mapping.read(mapping.kind, Reader(io.BytesIO(coded)), shape)
    area = Area(3, 5, 29, 41)
    found = back.samples(planes[area.within(Area(0, 0, 30, 41))], shape, area, 0)
    assert np.array_equal(found.numpy(), samples[:, 3:29, 5:41])


def test_values_are_listed_where_that_pays():
    pixels = natural(64, 64, 1, np.uint16).astype(np.int32)
    shape = PlaneShape(1, 64, 64, 16)
    assert Mapping.of(pixels[None], shape)[0].used is None
    assert Mapping.of(pixels[None] // 257 * 257, shape)[0].used is not None


@pytest.mark.parametrize(
    "listed", [b"no stream", zlib.compress(bytes(96)), zlib.compress(b"\xff" * 95), zlib.compress(b"\xff" * 96)[:-9]]
)
def test_damaged_lists_are_refused(listed):
    shape = PlaneShape(3, 30, 41, 8)
    good = bytes([len(zlib.compress(b"\xff" * 96))]) + zlib.compress(b"\xff" * 96)
    assert Mapping.read(0, Reader(io.BytesIO(good)), shape).used.all()
    with pytest.raises(lic.FormatError):
        Mapping.read(0, Reader(io.BytesIO(bytes([len(listed)]) + listed)), shape)


def test_only_8_bit_colours_have_ycbcr():
    for kind, shape in (
        (3, PlaneShape(3, 4, 4, 8)),
        (4, PlaneShape(3, 4, 4, 8)),
        (1, PlaneShape(1, 4, 4, 8)),
        (2, PlaneShape(3, 4, 4, 16)),
    ):
        with pytest.raises(lic.FormatError):
            Mapping.read(kind, Reader(io.BytesIO(b"\0")), shape)
