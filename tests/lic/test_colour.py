"""Colour transforms of a picture's own."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lic
from lic import api, container
from lic.layers import colour
from lic.models import wavelet
from tests.lic.conftest import natural, sunset


@given(st.tuples(*[st.integers(-128, 127)] * 3))
def test_turning_keeps_lengths(angles):
    matrix = colour.turn(angles)
    assert torch.allclose(matrix @ matrix.T, torch.eye(3, dtype=torch.float64))


def test_uncorrelated_planes_are_left_alone():
    planes = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    planes *= torch.tensor([90.0, 40.0, 20.0])[:, None, None]
    assert colour.best_angles(planes, 4) == colour.UNTURNED


@pytest.mark.parametrize("angles", [(20, 0, 0), (-31, 7, 12), (5, -40, 0), (0, 0, 25)])
def test_a_turn_is_undone(angles):
    generator = torch.Generator().manual_seed(1)
    planes = torch.randn(1, 3, 96, 96, generator=generator) * torch.tensor([200.0, 70.0, 20.0])[:, None, None]
    turned = colour.times(colour.turn(angles).T, planes)
    found = colour.turn(colour.best_angles(turned, 4)) @ colour.turn(angles).T
    assert (found.abs().amax(1) > math.cos(math.radians(6))).all()  # the axes again, in whatever order


def test_a_colourful_picture_takes_less(monkeypatch):
    turned = lic.encode(sunset(), target_psnr=34)
    monkeypatch.setattr(wavelet, "best_angles", lambda *_: colour.UNTURNED)
    assert len(turned) < 0.85 * len(lic.encode(sunset(), target_psnr=34))


def test_parts_and_scales_of_a_turned_picture():
    data = lic.encode(sunset(), quality=80, tune="visual")
    file = io.BytesIO(data)
    frame = next(container.read_frames(file, container.read_info(file)))
    streams = api._split(frame.planes, wavelet.WaveletCodec.card)
    assert wavelet._Header.read(streams["coefficients"])[0].angles != colour.UNTURNED
    whole = lic.decode(data).pixels
    assert np.array_equal(lic.decode(data, region=(11, 20, 71, 41)).pixels, whole[20:41, 11:71])
    halved = whole.reshape(32, 2, 44, 2, 3).mean((1, 3))
    assert np.abs((lic.decode(data, scale=1 / 2).pixels - halved).mean((0, 1))).max() < 1


def test_small_and_grey_pictures_are_not_turned(monkeypatch):
    kinds = natural(5, 5, 3), natural(64, 64, 1), natural(64, 64, 1)[..., None].repeat(3, 2)
    coded = [lic.encode(pixels, quality=60) for pixels in kinds]
    monkeypatch.setattr(wavelet, "best_angles", lambda *_: colour.UNTURNED)
    assert coded == [lic.encode(pixels, quality=60) for pixels in kinds]
