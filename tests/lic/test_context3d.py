"""`context3d`: its centres, its importance map, the order in which its planes are coded."""

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.entropy import Decoder, Encoder
from lic.layers import importance
from lic.layers.autoencoder import from_grids, to_grids
from lic.layers.centres import CENTRES, REACH, Centres
from lic.layers.importance import GROUPS, MapPrior
from lic.layers.integer import PortableConv2d
from lic.layers.volumes import PLANES, relatives
from lic.models.context3d import Context3dCodec, Known, Networks, checkerboard, spread
from tests.lic.conftest import natural

POSITION = 700


@pytest.fixture(scope="module")
def networks() -> Networks:
    """The first ones, with a CNN that says more."""
    torch.manual_seed(0)
    networks = Context3dCodec.trainable()
    for volume in networks.volumes:
        volume.out.weight.data *= 20
    return networks.eval()


def some_symbols(count: int, size: tuple[int, int]) -> Tensor:
    """(1, count, *size), the fewer and the smaller, the later the plane."""
    scales = torch.linspace(3, 0.3, count)[:, None, None]
    return (torch.randn(1, count, *size, generator=torch.Generator().manual_seed(0)) * scales).round()


def test_centres_keep_their_order_and_take_what_is_nearest():
    torch.manual_seed(0)
    centres = Centres()
    torch.nn.init.normal_(centres.log_gaps, std=0.1)
    values = centres.centres()
    assert len(values) == CENTRES
    assert values[REACH] == 0
    assert (values.diff() > 0).all()
    assert torch.equal(values, -values.flip(0))
    z = torch.linspace(-100, 100, 999)
    symbols, chosen = centres.eval()(z)
    assert torch.equal(symbols.long(), (z[:, None] - values).abs().argmin(1) - REACH)
    assert torch.equal(chosen, centres.values(symbols))


def test_centres_are_hard_forward_and_soft_backward():
    centres = Centres().train()
    z = torch.tensor([0.0, 0.2, 0.45, 3.3, 40.0], requires_grad=True)
    _, values = centres(z)
    assert torch.allclose(values, centres.values(centres.symbols(z)))
    values.sum().backward()
    assert (z.grad > 0.1).all()
    assert centres.log_gaps.grad.any()


def test_volumes_hold_all_latents_once():
    latents = torch.randn(2, 768, 3, 4)
    assert torch.equal(from_grids(*to_grids(latents)), latents)
    for planes, channels in zip(PLANES, (192, 144), strict=True):
        assert sorted(plane.number for plane in planes if plane.factor == 1) == list(range(channels))
        groups = [plane.group for plane in planes]
        assert groups == sorted(groups)
        assert 0 <= groups[0] <= groups[-1] < GROUPS
    assert all(j < i for i, some in enumerate(relatives(3)) for j in some)


@pytest.mark.parametrize("factor", [0.7, 3.0, 40.0, 900.0])
def test_digits_reach_further_than_centres(networks, factor):
    scaled = torch.randn(1, 192, 4, 4, generator=torch.Generator().manual_seed(0)) * factor
    part = networks.coarse.quantise(scaled, networks.centres)
    assert torch.allclose(networks.coarse.dequantise(part.symbols[0], networks.centres), part.values[0], atol=1e-3)
    assert (part.values - scaled)[0, 0].abs().max() <= (0.501 if factor < 100 else 20)


def coding_order(fine: bool, size: tuple[int, int]) -> Tensor:
    """The number of the step in which each symbol of a volume is coded, (P, *size)."""
    phase = checkerboard(torch.zeros(size))[0]
    return 2 * torch.arange(len(PLANES[fine]))[:, None, None] + phase


@pytest.mark.parametrize("fine", [False, True])
def test_probabilities_depend_on_earlier_symbols_alone(networks, fine):
    volume, size = networks.volumes[fine], (6, 8)
    coarse, own = some_symbols(len(PLANES[0]), (3, 4)), some_symbols(len(PLANES[fine]), size)
    level = torch.full((1, 1, *size), GROUPS)
    usual = volume.usual_scales(networks.autoencoder.gains, POSITION)[None]
    order = coding_order(fine, size)

    def costs(own: Tensor) -> Tensor:
        known = Known.of(torch.cat([spread(coarse), own], 1) if fine else own)
        return volume.costs(known, own, own, level, usual, networks.centres)[0].detach()

    before = costs(own)
    for plane, row, column in ((0, 2, 2), (0, 2, 3), (40, 0, 0), (41, 5, 7), (len(PLANES[fine]) - 1, 3, 3)):
        other = own.clone()
        other[0, plane, row, column] = -own[0, plane, row, column] + 3
        changed = (costs(other) != before).nonzero().tolist()
        changed.remove([plane, row, column])
        assert all(order[tuple(at)] > order[plane, row, column] for at in changed)
        assert changed or plane == len(PLANES[fine]) - 1


def test_files_have_the_probabilities_of_training(networks):
    """Each symbol's cost in training is that under the frequencies with which it is coded."""
    level = torch.randint(0, GROUPS + 1, (1, 1, 3, 4), generator=torch.Generator().manual_seed(0)).float()
    symbols = [some_symbols(len(PLANES[0]), (3, 4)), some_symbols(len(PLANES[1]), (6, 8))]
    levels = level, spread(level)
    symbols = [s * (at > v.groups[:, None, None]) for s, at, v in zip(symbols, levels, networks.volumes, strict=True)]
    kernels = Networks(PortableConv2d).eval()
    kernels.load_state_dict(networks.rounded())
    spent = [torch.zeros_like(part[0]) for part in symbols]

    def code(plane: int, positions: Tensor, frequencies: NDArray[np.float64]) -> NDArray[np.integer]:
        fine = plane >= len(PLANES[0])
        at = plane - fine * len(PLANES[0])
        values = symbols[fine][0, at].flatten()[positions].long()
        own = frequencies[np.arange(len(values)), values.numpy() + REACH + 1]
        spent[fine][at].view(-1)[positions] = torch.from_numpy(-np.log2(own / frequencies.sum(1))).float()
        return values.numpy()

    with torch.inference_mode():
        walked = kernels.walk(level, POSITION, code)
        for i, volume in enumerate(networks.volumes):
            assert torch.equal(walked[i], symbols[i][0])
            known = Known.of(torch.cat([spread(symbols[0]), symbols[1]], 1) if i else symbols[0])
            usual = volume.usual_scales(networks.autoencoder.gains, POSITION)[None]
            costs = volume.costs(known, symbols[i], symbols[i], levels[i], usual, networks.centres)[0]
            costs = costs * (levels[i][0] > volume.groups[:, None, None])
            rare = costs > 9  # frequencies are at least 1
            assert torch.allclose(costs[~rare], spent[i][~rare], atol=0.03)


def test_a_lower_map_takes_fewer_bits(networks):
    pixels = torch.from_numpy(natural(96, 128, 3)).permute(2, 0, 1)[None].float()
    results, networks = [], copy.deepcopy(networks)
    with torch.inference_mode():
        for groups in (0.0, 2.0, 5.0):
            networks.importance.out.bias.fill_(groups)
            networks.importance.out.weight.zero_()
            results.append(networks(pixels, torch.Generator().manual_seed(0)))
    for name in ("bits_per_pixel", "psnr", "level"):
        values = [float(result[name]) for result in results]
        assert values == sorted(set(values), reverse=True), name


def test_the_map_learns_from_both_bits_and_error():
    torch.manual_seed(0)
    networks = Context3dCodec.trainable().train()
    pixels = torch.from_numpy(natural(64, 64, 3)).permute(2, 0, 1)[None].float()
    networks(pixels, torch.Generator().manual_seed(0))["loss"].backward()
    assert networks.importance.out.bias.grad.abs() > 0
    assert networks.map_prior.logarithms.grad.any()


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 2), (12, 17)])
def test_maps_come_back_at_the_cost_that_training_counts(size):
    prior = MapPrior()
    family = importance.family(prior.tables())
    levels = np.random.default_rng(0).integers(0, GROUPS + 1, size)
    encoder = Encoder()
    importance.encode(encoder, levels, family)
    assert np.array_equal(importance.decode(Decoder(encoder.bytes()), size, family), levels)
    real = torch.from_numpy(levels).float()[None, None]
    assert abs(8 * len(encoder.bytes()) - float(prior.bits(real, real).detach())) < 50


@pytest.mark.parametrize("place", [(0, 0), (1, 0), (1, 1)])
def test_a_map_that_is_open_at_one_place(networks, place):
    kernels = Networks(PortableConv2d).eval()
    kernels.load_state_dict(networks.rounded())
    level = torch.zeros(1, 1, 2, 2)
    level[0, 0][place] = GROUPS
    coded = []

    def code(plane: int, positions: Tensor, frequencies: NDArray[np.float64]) -> NDArray[np.integer]:
        coded.append(len(positions))
        return np.ones(len(positions), np.int64)

    coarse, fine = kernels.walk(level, POSITION, code)
    assert coarse.sum() == len(PLANES[0])
    assert fine.sum() == 4 * len(PLANES[1])
    assert sum(coded) == coarse.sum() + fine.sum()
