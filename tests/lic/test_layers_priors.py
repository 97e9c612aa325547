"""Factorised prior and Gaussian conditional: integer tables say what the probabilities in training say."""

import numpy as np
import pytest
import torch

from lic.entropy import PRECISION, Decoder, Encoder
from lic.layers import factorized_prior, gaussian
from lic.layers.factorized_prior import FactorizedPrior
from lic.layers.gain import OCTAVE, RATIO_UNIT

TYPICAL = torch.tensor([0.3, 2.0, 40.0, 200.0])


def prior() -> FactorizedPrior:
    torch.manual_seed(0)
    network = FactorizedPrior(TYPICAL)
    torch.nn.init.normal_(network.weights, std=0.03)
    torch.nn.init.normal_(network.means, std=0.01)
    return network


@pytest.mark.parametrize("octaves", [-1.0, 0.0, 2.5, 7.0])
def test_tables_are_the_prior_s_probabilities(octaves):
    network = prior()
    ratio = round(2**octaves * RATIO_UNIT)
    family = factorized_prior.tables(network.cumulatives().numpy(), np.full(len(TYPICAL), ratio))
    log2_ratios = torch.full((1, len(TYPICAL), 1, 1), float(np.log2(ratio / RATIO_UNIT)))
    for channel, table in enumerate(family):
        symbols = torch.arange(table.first, table.first + table.size)
        inputs = symbols.float().expand(1, len(TYPICAL), 1, -1)
        bits = network.bits(inputs, log2_ratios)[0, channel, 0].detach().double().numpy()
        probabilities = 2.0**-bits
        extra = (probabilities * (table.bits()[1:] - bits)).sum()  # bits a symbol
        assert abs(extra) < 0.01
        assert probabilities.sum() > 0.999 or table.size == 1023  # the largest


def test_bits_are_finite_with_gradients_for_outliers():
    network = prior()
    symbols = torch.tensor([0.0, 1e4, -1e6]).view(1, 1, 1, 3).expand(1, len(TYPICAL), 1, 3)
    bits = network.bits(symbols, torch.zeros(1, len(TYPICAL), 1, 1))
    bits.sum().backward()
    assert torch.isfinite(bits).all()
    assert (bits > -1e-4).all()
    assert (network.log_scales.grad != 0).any()
    log2_scale = torch.tensor([-9.0, -9.0, 3.0], requires_grad=True)
    bits = gaussian.gaussian_bits(torch.tensor([0.0, 40.0, 1e4]), log2_scale)
    bits.sum().backward()
    assert torch.isfinite(bits).all()
    assert (log2_scale.grad[1:] < 0).all()  # wider
    assert log2_scale.grad[0] == 0


def test_a_scale_at_its_limit_does_not_drift_away():
    noise = torch.rand(1000) - 0.5
    for start, moves in ((-3.0, True), (-3.5, False)):
        log2_scale = torch.full((1000,), start, requires_grad=True)
        gaussian.gaussian_bits(noise, log2_scale).sum().backward()
        assert bool((log2_scale.grad > 0).any()) == moves


def test_a_family_of_channels_comes_back_and_may_be_cut_off():
    family = factorized_prior.tables(prior().cumulatives().numpy(), np.full(len(TYPICAL), RATIO_UNIT))
    symbols = (np.random.default_rng(0).standard_t(2, (len(TYPICAL), 6, 5)) * TYPICAL.numpy()[:, None, None]).astype(
        np.int32
    )
    encoder = Encoder()
    factorized_prior.encode(encoder, symbols, family)
    data = encoder.bytes()
    assert np.array_equal(factorized_prior.decode(Decoder(data), (6, 5), family), symbols)
    part = factorized_prior.decode(Decoder(data[: len(data) // 2], incomplete=True), (6, 5), family, truncated=True)
    assert np.array_equal(part[0], symbols[0])
    assert not part[-1].any()


def test_gaussian_tables_are_gaussian():
    frequencies = gaussian.gaussian_frequencies()
    assert (frequencies.sum(1) == 2**PRECISION).all()
    for k in (0, 20, 40):
        log2_scale = torch.tensor(k / 5 - 3.25)
        for symbol in (0, 1, 5):
            expected = float(gaussian.gaussian_bits(torch.tensor(float(symbol)), log2_scale))
            if expected < 15:
                assert abs(PRECISION - np.log2(frequencies[k, gaussian.REACH + symbol + 1]) - expected) < 0.01


def test_the_table_is_the_nearest_scale():
    log2_scales = torch.arange(-2000, 4000)
    nearest = ((log2_scales / OCTAVE + 3.25) * 5).clamp(0, 63)
    assert ((gaussian.table_index(log2_scales) - nearest).abs() <= 0.51).all()


def test_tables_follow_what_is_counted():
    counts = np.zeros((gaussian.SCALES, 2 * gaussian.REACH + 2))
    unseen = gaussian.calibrated(counts)
    gaussian.count(counts, np.full(100_000, 30, np.int32), np.full(100_000, 3, np.int32))
    gaussian.count(counts, np.array([31], np.int32), np.array([10_000], np.int32))
    seen = gaussian.calibrated(counts)
    assert seen[30, gaussian.REACH + 3 + 1] > 0.9 * 2**PRECISION
    assert seen[31, 0] > unseen[31, 0]
    assert torch.equal(seen[32:], unseen[32:])
    assert (seen.sum(1) == 2**PRECISION).all()
