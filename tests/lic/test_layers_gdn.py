"""GDN and its inverse, gains, the wavelet packet that the transforms start as."""

import numpy as np
import pytest
import torch

from lic.codec import PlaneShape
from lic.errors import FormatError
from lic.layers import autoencoder, gain
from lic.layers.autoencoder import LATENTS, Analysis, Autoencoder, Synthesis
from lic.layers.gain import ANCHORS, LAST, OCTAVE, RATIO_UNIT, PairedGains
from lic.layers.gdn import GDN
from tests.lic.conftest import natural


def without_gdn(network: torch.nn.Module) -> torch.nn.Module:
    for layer in network.modules():
        if isinstance(layer, GDN):
            torch.nn.init.zeros_(layer.gamma_root)
    return network


def pixels_of(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(natural(height, width, 3)).permute(2, 0, 1)[None].float()


def test_gdn_is_the_equation():
    torch.manual_seed(0)
    layer = GDN(5)
    torch.nn.init.normal_(layer.gamma_root)
    x = torch.randn(2, 5, 3, 4)
    norm = torch.einsum("ij,njhw->nihw", layer.gamma_root.square(), x.square())
    expected = x / (layer.beta_root.square().view(-1, 1, 1) + norm).sqrt()
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_the_inverse_of_gdn_inverts_it_nearly_at_the_start():
    x = torch.randn(2, 64, 3, 4) * 2
    forward, inverse = GDN(64), GDN(64, inverse=True)
    assert (inverse(forward(x)) - x).abs().max() < 0.01
    assert (forward(x) - x).abs().max() > 0.01  # it is there


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (48, 80)])
def test_at_the_start_synthesis_inverts_analysis_up_to_the_borders(size):
    torch.manual_seed(1)
    analysis, synthesis = without_gdn(Analysis()), without_gdn(Synthesis())
    x = (pixels_of(*size) - 128) / 64
    with torch.no_grad():
        y = analysis(x)
        assert y.shape == (1, LATENTS, size[0] // 16, size[1] // 16)
        assert y.numel() == x.numel()
        assert (synthesis(y) - x).abs().max() < 1e-4
        with_gdn = Autoencoder()
        error = with_gdn.synthesise(with_gdn.analyse(pixels_of(*size))) - pixels_of(*size)
    assert error.square().mean().sqrt() < 0.25  # of an 8-bit pixel value


def test_smooth_pictures_end_up_in_the_low_band():
    y, x = np.mgrid[:96, :96] / 96
    smooth = torch.from_numpy(np.stack([100 + 80 * x, 90 + 70 * y, 60 + 60 * x * y])).float()[None]
    with torch.no_grad():
        energy = (Autoencoder().analyse(smooth)[0] * autoencoder.packet_norms()[:, None, None]).square().sum((1, 2))
    low = energy[[0, 64, 128]]  # of the three planes
    assert low.sum() > 0.98 * energy.sum()


def test_norms_are_what_a_latent_makes_in_pixels():
    synthesis, norms = without_gdn(Synthesis()), autoencoder.packet_norms()
    for channel in (0, 5, 191, 192, 400, 767):
        y = torch.zeros(1, LATENTS, 7, 7)
        y[0, channel, 3, 3] = 1
        with torch.no_grad():
            assert torch.isclose(synthesis(y).norm(), norms[channel], rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (40, 17), (200, 150)])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_do_not_show(monkeypatch, size, channels):
    torch.manual_seed(2)
    network = Autoencoder()
    shape = PlaneShape(channels, *size, 16)
    planes = torch.from_numpy(natural(*size, 3, np.uint16).astype(np.int32)).permute(2, 0, 1)[:channels]
    with torch.inference_mode():
        latents = autoencoder.latents_of(planes, shape, network)
        whole = autoencoder.planes_of(latents, shape, network.synthesise)
        monkeypatch.setattr(autoencoder, "_TILE", 3)
        assert torch.allclose(autoencoder.latents_of(planes, shape, network), latents, atol=1e-4)
        assert (autoencoder.planes_of(latents, shape, network.synthesise) - whole).abs().max() <= 1
    assert whole.shape == planes.shape
    assert (whole - planes).double().square().mean().sqrt() < 257


def random_gains() -> PairedGains:
    torch.manual_seed(3)
    gains = PairedGains(torch.arange(ANCHORS)[:, None] + torch.randn(ANCHORS, 20))
    gains.log2.data = gains.rounded()
    return gains


@pytest.mark.parametrize("position", [0, 1, 255, 256, 1000, LAST - 1, LAST])
def test_integer_ratios_are_the_real_ones(position):
    gains = random_gains()
    log2 = gains.log2_ratios(torch.tensor([position / OCTAVE])).flatten().detach().numpy()
    assert np.abs(gains.integer_log2_ratios(position) / OCTAVE - log2).max() <= 1 / OCTAVE + 1e-5
    exact = 2.0 ** (gains.integer_log2_ratios(position) / OCTAVE)
    assert np.abs(gains.integer_ratios(position) / RATIO_UNIT - exact).max() <= 1 / RATIO_UNIT + 1e-5 * exact.max()


def test_gains_start_inverse_to_one_another():
    gains = PairedGains(torch.randn(ANCHORS, 20))
    position = torch.rand(6) * (ANCHORS - 1)
    assert torch.allclose(gains.before(position) * gains.after(position), torch.ones(6, 20, 1, 1), atol=1e-5)
    assert torch.allclose(gains.finest()[:, 0, 0], gains.before(torch.tensor([7.0]))[0, :, 0, 0])


def test_positions_rise_with_quality():
    positions = [gain.quality_position(q) for q in range(101)]
    assert positions == sorted(set(positions))
    assert positions[0] == 0
    assert positions[-1] <= LAST


@pytest.mark.parametrize("stream", [b"", b"\0", b"\xff\xff", b"\x01\x07"])
def test_positions_that_do_not_exist(stream):
    with pytest.raises(FormatError, match="header"):
        gain.read_position(stream)
