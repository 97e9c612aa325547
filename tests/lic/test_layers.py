"""Integer layers and lifting: the same integers from every kernel; synthesis inverts analysis."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lic.layers import lifting
from lic.layers.integer import (
    Int8Conv2d,
    PortableConv2d,
    TrainableConv2d,
    add,
    rectified,
    rectify,
    signed,
)

needs_int8 = pytest.mark.skipif(not Int8Conv2d.available(), reason="this torch lacks the int8 kernel")


def integers(tensor: torch.Tensor, zero: int) -> torch.Tensor:
    """Activations of either form -> their integers."""
    return tensor.int() - zero if tensor.dtype == torch.uint8 else tensor.int()


@needs_int8
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel"), [(1, 5, 1), (9, 64, 3), (64, 64, 3), (128, 12, 1), (30, 7, 5)]
)
@pytest.mark.parametrize("scale_in", [signed(3), rectified(4)])
@pytest.mark.parametrize("scale_out", [signed(2), rectified(1), None])
@pytest.mark.parametrize("sides", [(13, 10), (3, 17), (12, 2)])
def test_all_kernels_give_the_same_integers(inputs, outputs, kernel, scale_in, scale_out, sides):
    torch.manual_seed(0)
    trained = TrainableConv2d(inputs, outputs, kernel, scale_in, scale_out, biases=2)
    trained.weight.data *= 10  # so that some outputs saturate
    x = torch.randint(scale_in.low, scale_in.high + 1, (2, inputs, *sides))
    results = []
    for kind in (Int8Conv2d, PortableConv2d):
        layer = kind(inputs, outputs, kernel, scale_in, scale_out, biases=2)
        layer.load_state_dict(trained.shipped())
        results.append(layer(layer.form(x, scale_in), 1))
    with torch.no_grad():
        results.append(trained(trained.form(x, scale_in), 1))
    if scale_out is None:
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[1], results[2])
    else:
        int8, portable, training = (integers(r, scale_out.zero) for r in results)
        assert torch.equal(int8, portable)
        assert torch.equal(portable, training)
        assert int8.unique().numel() > 10


def test_extreme_weights_and_activations_stay_exact():
    inputs = 1040
    state = {
        "weight": torch.full((1, inputs, 1, 1), 127, dtype=torch.int8),
        "bias": torch.tensor([[-1]], dtype=torch.int32),
        "exponent": torch.tensor([0], dtype=torch.int8),
    }
    x = torch.full((1, inputs, 3, 3), 127)
    for kind in (Int8Conv2d, PortableConv2d) if Int8Conv2d.available() else (PortableConv2d,):
        layer = kind(inputs, 1, 1, rectified(0), None)
        layer.load_state_dict(state)
        assert layer(layer.form(x, rectified(0))).unique().tolist() == [127 * 127 * inputs - 1]


def test_saturating_sum_and_rectifier_agree_between_the_forms():
    a, b = (x.ravel() for x in torch.meshgrid(torch.arange(-64, 64), torch.arange(-64, 64), indexing="ij"))
    small = add((a + 64).to(torch.uint8), (b + 64).to(torch.uint8))
    assert torch.equal(small.int() - 64, add(a.float(), b.float()).int())
    assert torch.equal(rectify(small).int(), rectify(add(a.float(), b.float())).int())


def test_training_goes_on_from_what_was_shipped():
    torch.manual_seed(0)
    trained = TrainableConv2d(4, 6, 3, signed(3), rectified(2), biases=3)
    again = TrainableConv2d(4, 6, 3, signed(3), rectified(2), biases=3)
    again.start_from(trained.shipped())
    for name, tensor in trained.shipped().items():
        assert torch.equal(tensor, again.shipped()[name])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 6), st.integers(0, 2**31))
def test_synthesis_inverts_analysis_for_every_size(height, width, levels, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(0, 300, (1, 2, height, width))).float()
    scale = 2**lifting.FRACTION
    low, bands = lifting.analyse(x * scale, levels)  # in 1 / scale steps, so that rounding costs little
    sizes = [(height, width), *(band.shape[2:] for band in bands)]
    picture = (low * scale).round().long()
    for level in range(levels, 0, -1):
        picture = lifting.synthesise(picture, bands[level - 1].round().long() << lifting.FRACTION, *sizes[level - 1])
    assert (picture / scale - x * scale).abs().max() < 12 * levels
    assert picture.shape == x.shape
