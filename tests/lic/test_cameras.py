"""What cameras and earlier files leave in training pictures."""

import numpy as np
import torch
from PIL import Image

from lic.layers import cameras, reversible
from tests.lic.conftest import natural


def test_a_mosaic_keeps_what_its_sensor_saw():
    picture = torch.from_numpy(natural(40, 52, 3)).permute(2, 0, 1).float()
    for kernels in (cameras._CORRECTED, cameras._BILINEAR):
        out = cameras.demosaiced(picture, kernels)
        for plane, y, x in ((0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)):
            assert torch.allclose(out[plane, y::2, x::2], picture[plane, y::2, x::2], atol=1e-2)
        assert (out - picture).abs().mean() > 1


def test_a_mosaic_of_a_flat_grey_area_is_flat():
    for kernels in (cameras._CORRECTED, cameras._BILINEAR):
        assert torch.allclose(cameras.demosaiced(torch.full((3, 16, 16), 90.0), kernels), torch.tensor(90.0), atol=1e-3)


def test_ycbcr_is_that_of_jpeg_files():
    pixels = natural(40, 52, 3)
    expected = np.asarray(Image.fromarray(pixels).convert("YCbCr")).transpose(2, 0, 1).astype(float)
    picture = torch.from_numpy(pixels).permute(2, 0, 1).float()
    assert np.abs(cameras.to_ycbcr(picture, 1).numpy() - expected).max() < 1.01
    halved = cameras.to_ycbcr(picture, 2).numpy()
    assert np.abs(halved[0] - expected[0]).max() < 1.01
    assert np.abs(halved - expected)[1:].mean() < 8


def test_half_of_the_pictures_are_left_alone():
    pixels = torch.from_numpy(natural(16, 16, 3)).permute(2, 0, 1).float().repeat(200, 1, 1, 1)
    planes = cameras.marked(pixels, torch.Generator().manual_seed(0))
    alone = (planes == reversible.to_rct(pixels.int() - 128)).all((1, 2, 3)).float().mean()
    assert 0.4 < alone < 0.6
    assert planes.dtype == torch.int32
    assert planes[:, 0].min() >= -128
    assert planes[:, 0].max() <= 127
