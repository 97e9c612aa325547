"""Factorised prior, Gaussian and mixture conditionals: integer tables say what the probabilities in training say."""

import numpy as np
import pytest
import torch

from lic.entropy import PRECISION, Decoder, Encoder, Table
from lic.layers import factorized_prior, gaussian, mixture
from lic.layers.factorized_prior import FactorizedPrior
from lic.layers.gain import OCTAVE, RATIO_UNIT
from lic.layers.mixture import COMPONENTS, PARAMETERS, Mixtures

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


def some_mixtures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters (PARAMETERS, count) and logarithms of scales (1, count), all multiples of 1 / OCTAVE."""
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(PARAMETERS, count, generator=generator) * 1.5
    log2_scales = torch.rand(1, count, generator=generator) * 12 - 5
    return (parameters * OCTAVE).round() / OCTAVE, (log2_scales * OCTAVE).round() / OCTAVE


def drawn(parameters: torch.Tensor, log2_scales: torch.Tensor) -> np.ndarray:
    """A symbol (n,) of each mixture, a few far outside."""
    rng = np.random.default_rng(0)
    weights, means, widths = parameters.view(3, COMPONENTS, -1).double().numpy()
    component = (2**weights / (2**weights).sum(0)).cumsum(0) < rng.random(weights.shape[1])
    chosen = component.sum(0).clip(0, COMPONENTS - 1), np.arange(weights.shape[1])
    normal = means[chosen] + rng.normal(size=len(chosen[1])) * 2 ** widths[chosen]
    symbols = np.rint(normal * 2 ** log2_scales[0].double().numpy()).astype(np.int64)
    symbols[::50] += rng.integers(-5000, 5000, len(symbols[::50]))
    return symbols


def test_mixtures_come_back_at_the_size_that_training_counts():
    parameters, log2_scales = some_mixtures(20_000)
    symbols = drawn(parameters, log2_scales)
    mixtures = Mixtures.of(parameters, (log2_scales * OCTAVE).long(), mixture.cumulative(mixture.knots()))
    counts = np.zeros((mixture.SURE, 2 * mixture.SURE_REACH + 2))
    mixture.count(counts, symbols, mixtures)
    family = [Table(-mixture.SURE_REACH, row) for row in mixture.calibrated(counts).numpy()]
    encoder = Encoder()
    mixture.encode(encoder, symbols, mixtures, family)
    data = encoder.bytes()
    assert np.array_equal(mixture.decode(Decoder(data), mixtures, family), symbols)
    bits = mixture.mixture_bits(
        torch.from_numpy(symbols).float().view(1, 1, 1, -1), log2_scales[None, :, None], parameters[None, :, None]
    )
    usual = np.arange(len(symbols)) % 50 > 0
    assert abs(8 * len(data) / float(bits.sum()) - 1) < 0.03
    encoder, some = Encoder(), mixtures.at(np.flatnonzero(usual))
    mixture.encode(encoder, symbols[usual], some, family)
    assert abs(8 * len(encoder.bytes()) / float(bits[..., usual].sum()) - 1) < 0.01


def test_mixture_bits_sum_to_one_and_give_outliers_gradients():
    parameters, log2_scales = some_mixtures(30)
    symbols = torch.arange(-3000, 3001).float().view(1, 1, -1, 1).expand(-1, -1, -1, 30)
    given = [t.view(1, -1, 1, 30).expand(-1, -1, 6001, -1) for t in (log2_scales.clamp(max=6), parameters)]
    assert ((torch.exp2(-mixture.mixture_bits(symbols, *given)).sum(2) - 1).abs() < 2e-3).all()
    log2_scale = torch.tensor([-9.0, 3.0]).view(1, 1, 1, 2).requires_grad_()
    start = mixture.first_parameters(1).view(1, -1, 1, 1).expand(-1, -1, 1, 2)
    bits = mixture.mixture_bits(torch.tensor([40.0, 1e6]).view(1, 1, 1, 2), log2_scale, start)
    bits.sum().backward()
    assert torch.isfinite(bits).all()
    assert (log2_scale.grad < 0).all()  # wider


def test_relative_symbols_are_the_same_in_integers():
    log2_scales = torch.arange(-1500, 3000)
    for symbol in (-700, -3, 0, 1, 40):
        real = symbol * 16 / torch.exp2((log2_scales / OCTAVE).clamp(-3.25, 9.5).double())
        difference = mixture.relative(torch.tensor(symbol), log2_scales).clamp(-63, 63) - real.clamp(-63, 63)
        assert (difference.abs() <= 0.51).all()
