"""`context3d`: Mentzer, Agustsson, Tschannen, Timofte, Van Gool, "Conditional Probability Models for Deep Image
Compression" (CVPR 2018, arXiv 1801.04260).

    picture -> analysis -> * gains -+-> nearest centres -> mask ------> / gains -> synthesis -> picture
                                    |        symbols        |
                                    +-> importance map -----+-> entropy coder
                                                                  ^ probabilities of the centres
                                           symbols coded before -> masked 3-D CNN

What makes it that system: scalar quantisation to learned centres with soft-to-hard gradients (section 3.1,
lic.layers.centres); a causal 3-D CNN over channel, row and column, whose weights all channels share, that gives each
symbol's probabilities (section 3.2); an importance map, which says how many channels are spent at each position
(section 3.4, lic.layers.importance); MS-SSIM and the masked coding cost, that of what the map opens, as the loss.

What differs: transforms and gain units are those of `hyperprior`, from which it starts. So there are two volumes, 16
and 8 pixels a position (lic.layers.volumes), and channels of great range are coded in two or three digits, each a plane
of its own. Planes are coded one after the other, low frequencies first, each in two phases, a checkerboard's black and
then its white fields, where the paper's order is serial. A plane's neighbours along the channel axis are those nearest
in frequency; of the 32 planes before it, the sum of magnitudes is seen, too. The first layer has biases for each plane,
the last one for each usual scale. The map is coded first, and what it closes isn't coded, where in the paper zeros are.

The CNN works in integers (lic.layers.integer) on what both sides decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lic import weights as weight_files
from lic.codec import ModelCard, PlaneShape, Settings, Streams, View
from lic.entropy import Decoder, Encoder
from lic.errors import FormatError
from lic.layers import gain, importance, integer
from lic.layers.autoencoder import LATENTS, Autoencoder, from_grids, latent_size, latents_of, planes_of, to_grids
from lic.layers.centres import CENTRES, REACH, Centres, first_logarithms
from lic.layers.gain import OCTAVE, Gains
from lic.layers.importance import ImportanceNetwork, MapPrior
from lic.layers.integer import Convolution, QuickConv2d, TrainableConv2d, kernel_for, rectified, signed
from lic.layers.volumes import FACTORS, PLANES, relatives, spread

_RELATIVES = 3  # neighbours of a plane along the channel axis
_WINDOWS = 8, 32  # planes before it whose magnitudes are added up
_SEEN = 2 * _RELATIVES + len(_WINDOWS) + 2
_FEATURES, _HIDDEN = 24, 32
_KNOWN, _ACTIVATIONS = signed(4), rectified(4)
_SCALES = 32  # usual scales that the CNN's last bias knows, from 2**-6 units on, two an octave
_POSITIONS = 8192  # that probabilities are computed for at once
_EXPONENTS = np.array([round(2 ** (16 - i / OCTAVE)) for i in range(18 * OCTAVE)], np.int64)


# code(plane, positions, frequencies): the symbols of a plane (its number among all) at some of its positions (m,),
# which have those frequencies (m, 1 + CENTRES), an escape's first.
Code = Callable[[int, Tensor, NDArray[np.float64]], NDArray[np.integer]]


class Quantised(NamedTuple):
    """A volume after quantisation: symbols (N, P, h, w), whole numbers, and what they were before, in units of their
    planes; the values of the channels (N, C, h, w), in steps."""

    symbols: Tensor
    before: Tensor
    values: Tensor


class Opened(NamedTuple):
    """What the importance map leaves: its level (N, 1, h, w), the real number that it was rounded from, and symbols."""

    level: Tensor
    kept: Tensor
    symbols: list[Tensor]


class Known(NamedTuple):
    """What is known of both volumes' planes, in the size of the one that is coded, whole numbers: symbols (N, 1 + P, h,
    w), the first plane being zero; and the totals (N, 1 + P, h, w) of their magnitudes up to each plane."""

    symbols: Tensor
    totals: Tensor

    @staticmethod
    def of(symbols: Tensor) -> Known:
        symbols = F.pad(symbols, (0, 0, 0, 0, 1, 0))
        return Known(symbols, symbols.abs().cumsum(1))


class Volume(nn.Module):
    """One of the two (lic.layers.volumes): its planes, and the masked 3-D CNN that gives their symbols' probabilities.

    The CNN has two convolutions over rows, columns and the neighbours along the channel axis, and two over features.
    """

    channels: Tensor
    factors: Tensor
    groups: Tensor
    channel_groups: Tensor
    latents: Tensor
    usual: Tensor
    relatives: Tensor
    nearest: Tensor

    def __init__(self, conv: type[Convolution], fine: bool):
        super().__init__()
        planes = PLANES[fine]
        self.first_plane = len(PLANES[0]) if fine else 0
        everything = relatives(_RELATIVES)[self.first_plane :][: len(planes)]
        groups = {plane.number: plane.group for plane in planes}
        for name, numbers in {
            "channels": [plane.number for plane in planes],
            "factors": [plane.factor for plane in planes],
            "groups": [plane.group for plane in planes],
            "channel_groups": [groups[number] for number in sorted(groups)],
            "latents": [plane.channel.latent for plane in planes],
            "usual": [round(OCTAVE * plane.log2_scale()) for plane in planes],
            "relatives": [[i + 1 for i in some] + [0] * (_RELATIVES - len(some)) for some in everything],
        }.items():
            self.register_buffer(name, torch.tensor(numbers), persistent=False)
        # The nearest one in this volume, counted from 1; 0 for none.
        self.register_buffer("nearest", (self.relatives[:, 0] - self.first_plane).clamp(min=0), persistent=False)
        self.form = conv.form
        self.first = conv(_SEEN + 3, _FEATURES, 3, _KNOWN, _ACTIVATIONS, biases=len(planes))
        self.second = conv(2 * _FEATURES, _FEATURES, 3, _ACTIVATIONS, _ACTIVATIONS)
        self.hidden = conv(_FEATURES, _HIDDEN, 1, _ACTIVATIONS, _ACTIVATIONS)
        self.out = conv(_HIDDEN, CENTRES, 1, _ACTIVATIONS, None, biases=_SCALES)
        if isinstance(self.out, TrainableConv2d):
            self.out.weight.data *= 0.1
            self.out.bias.data = first_logarithms(torch.arange(_SCALES) / 2 - 6) / self.out.speed

    def quantise(self, scaled: Tensor, centres: Centres) -> Quantised:
        """The channels (N, C, h, w), in steps."""
        rest, numbers, before, symbols = scaled, [], [], []
        for factor in FACTORS:
            which = (self.factors == factor).nonzero()[:, 0]
            channels = self.channels[which]
            before.append(rest[:, channels] / factor)
            digits, values = centres(before[-1])
            rest = rest.index_add(1, channels, values * -factor)
            symbols.append(digits)
            numbers.append(which)
        order = torch.cat(numbers).argsort()
        return Quantised(torch.cat(symbols, 1)[:, order], torch.cat(before, 1)[:, order], scaled - rest)

    def dequantise(self, symbols: Tensor, centres: Centres) -> Tensor:
        """(P, h, w) -> the channels (C, h, w), in steps."""
        values = centres.values(symbols) * self.factors[:, None, None]
        return values.new_zeros(len(self.channel_groups), *symbols.shape[1:]).index_add(0, self.channels, values)

    def usual_scales(self, gains: Gains, position: int) -> Tensor:
        """The logarithms of the planes' usual scales, in their units: (P,) int64 in 1 / OCTAVE."""
        ratios = torch.from_numpy(gains.integer_log2_ratios(position)).to(self.usual.device)
        return self.usual - ratios[self.latents]

    def seen(self, known: Known, n: Tensor, k: Tensor, level: Tensor, usual: Tensor) -> Tensor:
        """What is known before planes k of pictures n, both (M,), are coded: of their relatives, of the planes before
        them, of the importance map (level (N, 1, h, w)), of their scales (usual (M,)). (M, _SEEN, h, w), -64..63."""
        at = k + self.first_plane
        relatives = 4 * known.symbols[n[:, None], self.relatives[k]]
        windows = [known.totals[n, at] - known.totals[n, (at - window).clamp(min=0)] for window in _WINDOWS]
        totals = torch.stack([2 * windows[0], windows[1]], 1)
        opened = 4 * (level[n] - self.groups[k, None, None, None])
        scales = (usual >> 5).view(-1, 1, 1, 1).expand_as(opened)
        return torch.cat([relatives, relatives.abs(), totals, opened, scales], 1).clamp(_KNOWN.low, _KNOWN.high)

    def features(self, seen: Tensor, own: Tensor, known: Tensor, plane: int | Tensor) -> Tensor:
        """own (M, 1, h, w): the symbols of the planes themselves, known where known (1, 1, h, w) is 1 -> activations
        (M, _FEATURES, h, w). Where all is known, they are what the second convolution sees of the nearest relative."""
        own = (4 * own * known).clamp(_KNOWN.low, _KNOWN.high)
        x = torch.cat([seen, own, own.abs().clamp(max=_KNOWN.high), 16 * known.expand_as(own)], 1)
        return self.first(self.form(x, _KNOWN), plane)

    def join(self, features: Tensor, nearest: Tensor) -> Tensor:
        return self.second(torch.cat([features, nearest], 1))

    def logarithms(self, joined: Tensor, scale: int | Tensor) -> Tensor:
        """-> logarithms to base 2 of the centres' probabilities but for a constant: (M, CENTRES, h, w), real."""
        return self.out(self.hidden(joined), scale)

    def costs(
        self, known: Known, own: Tensor, before: Tensor, level: Tensor, usual: Tensor, centres: Centres
    ) -> Tensor:
        """In training: the bits of the planes' symbols (N, P, h, w), zero where a plane is closed all over the picture.
        All of them at once. usual (N, P).

        Forward those of the symbols, backward also the mean over the centres under the shares of what was `before`.
        """
        n, k = (level > self.groups[:, None, None]).flatten(2).any(2).nonzero(as_tuple=True)
        usual, phase = usual[n, k], checkerboard(own)
        seen, symbols = self.seen(known, n, k, level, usual), own[n, k][:, None]
        features = self.features(seen, symbols, torch.ones_like(phase), k)
        # Of each picture, the first planes are here, in their order; a zero plane stands before all.
        nearest = torch.arange(len(k), device=k.device) + self.nearest[k] - k
        features = F.pad(features, (0, 0, 0, 0, 0, 0, 1, 0))[nearest * (self.nearest[k] > 0)]
        black, white = (self.join(self.features(seen, symbols, phase < i, k), features) for i in range(2))
        logarithms = self.logarithms(torch.where(phase == 0, black, white), _scale(usual)).float()
        costs = F.log_softmax(logarithms * math.log(2), 1) / -math.log(2)
        hard = costs.gather(1, symbols.long() + REACH)[:, 0]
        soft = (centres.shares(before[n, k]).movedim(-1, 1) * costs.detach()).sum(1)
        return torch.zeros_like(own).index_put((n, k), hard + soft - soft.detach())

    def walk(self, known: Known, level: Tensor, usual: Tensor, code: Code) -> None:
        """Code the planes, one after the other, all in integers; known (N = 1) has room for them, and then has them."""
        phase = checkerboard(level)
        features: dict[int, Tensor] = {}  # of planes that are the nearest ones of others still to come
        last = {nearest: plane for plane, nearest in enumerate(self.nearest.tolist())}
        for plane, group in enumerate(self.groups.tolist()):
            where = level > group
            if not where.any():
                break
            k = torch.tensor([plane], device=level.device)
            seen, own = self.seen(known, k * 0, k, level, usual[k]), torch.zeros_like(level)
            nearest = int(self.nearest[plane])
            for i in range(2):
                positions = (where & (phase == i)).flatten().nonzero()[:, 0]
                x = self.features(seen, own, phase < i, plane)
                joined = self.join(x, features[nearest] if nearest else torch.zeros_like(x)).flatten(2)
                for part in positions.split(_POSITIONS):
                    logarithms = self.logarithms(joined[..., part, None], int(_scale(usual[k])))[0, ..., 0]
                    symbols = code(self.first_plane + plane, part, _frequencies(logarithms))
                    own.view(-1)[part] = torch.from_numpy(symbols).to(own)
            if plane + 1 in last:
                features[plane + 1] = self.features(seen, own, torch.ones_like(level), plane)
            if last[nearest] == plane:
                features.pop(nearest, None)
            at = self.first_plane + plane
            known.symbols[:, at + 1] = own[0]
            known.totals[:, at + 1] = known.totals[:, at] + own[0].abs()


def checkerboard(x: Tensor) -> Tensor:
    """The phase in which the positions of x (..., h, w) are coded: (1, 1, h, w), 0 or 1."""
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[-2:])
    return ((rows[:, None] + columns) % 2)[None, None]


def _scale(usual: Tensor) -> Tensor:
    """The number of the CNN's last bias."""
    return ((usual + 6 * OCTAVE + OCTAVE // 4) >> 7).clamp(0, _SCALES - 1)


def _mask(level: Tensor, kept: Tensor, groups: Tensor) -> Tensor:
    """What the map opens of channels whose groups are given (C,): (N, C, h, w), 0 or 1. Gradients are those of the last
    group's share (section 3.4)."""
    groups = groups[:, None, None]
    share = (kept - groups).clamp(0, 1)
    return (level > groups).float() + share - share.detach()


def _frequencies(logarithms: Tensor) -> NDArray[np.float64]:
    """(CENTRES, m), exact in float32 -> frequencies (m, 1 + CENTRES), of an escape, which never comes, first."""
    integers = (logarithms * OCTAVE).round().long().cpu().numpy()
    below = (integers.max(0) - integers).clip(0, len(_EXPONENTS) - 1)
    return 1.0 + np.pad(_EXPONENTS[below].T, ((0, 0), (1, 0)))


class Networks(nn.Module):
    """A lic.training.loop.Trainable where conv is TrainableConv2d."""

    shrunk = 0.5

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        conv = QuickConv2d if conv is TrainableConv2d else conv
        self.autoencoder = Autoencoder()
        self.centres = Centres()
        self.importance, self.map_prior = ImportanceNetwork(LATENTS), MapPrior()
        self.coarse, self.fine = Volume(conv, fine=False), Volume(conv, fine=True)

    @property
    def volumes(self) -> tuple[Volume, Volume]:
        return self.coarse, self.fine

    def quantise(self, scaled: Tensor) -> list[Quantised]:
        """Latents in steps (N, LATENTS, h, w) -> both volumes."""
        parts = zip(self.volumes, to_grids(scaled), strict=True)
        return [volume.quantise(part, self.centres) for volume, part in parts]

    def opened(
        self, scaled: Tensor, position: Tensor, symbols: list[Tensor], generator: torch.Generator | None = None
    ) -> Opened:
        """The importance map of latents in steps (N, LATENTS, h, w), whose volumes have those symbols.

        In training it is rounded at random: both a group and its absence are seen, and gradients are right on average.
        """
        last = self.last(symbols)
        kept = (last - self.importance(scaled, position)).clamp(min=0)
        random = torch.rand(last.shape, generator=generator).to(last.device) if self.training else 0.5
        level = (kept + random).floor().minimum(last)
        coarse, fine = (volume.groups[:, None, None] for volume in self.volumes)
        masked = [symbols[0] * (level > coarse), symbols[1] * (spread(level) > fine)]
        return Opened(self.last(masked), kept, masked)

    def last(self, symbols: list[Tensor]) -> Tensor:
        """How many groups it takes to open all symbols that aren't zero: (N, 1, h, w) float32."""
        coarse, fine = (
            ((some != 0) * (volume.groups + 1.0)[:, None, None]).amax(1, keepdim=True)
            for volume, some in zip(self.volumes, symbols, strict=True)
        )
        return torch.maximum(coarse, F.max_pool2d(fine, 2))

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step; without training, what its result is worth. Besides the usual: the map's mean level, and its
        share of the bits."""
        position = gain.positions(len(pixels), generator).to(pixels.device)
        gains = self.autoencoder.gains
        scaled = self.autoencoder.analyse(pixels) * gains.before(position)
        quantised = self.quantise(scaled)
        level, kept, symbols = self.opened(scaled, position, [part.symbols for part in quantised], generator)
        bits = map_bits = self.map_prior.bits(level, kept)
        known, mean_level, values = Known.of(symbols[0]), level.mean(), []
        for volume, part, own in zip(self.volumes, quantised, symbols, strict=True):
            if volume is self.fine:
                known = Known.of(torch.cat([spread(symbols[0]), own], 1))
                level, kept = spread(level), spread(kept)
            usual = torch.stack([volume.usual_scales(gains, int(at)) for at in (position * OCTAVE).round()])
            costs = volume.costs(known, own, part.before, level, usual, self.centres)
            bits = bits + (costs * _mask(level, kept, volume.groups)).sum((1, 2, 3))
            values.append(part.values * _mask(level, kept, volume.channel_groups))
        decoded = self.autoencoder.synthesise(from_grids(*values) * gains.after(position))
        worth_reading = {"level": mean_level, "map_share": (map_bits / bits).mean()}
        return gain.structural_losses(bits, pixels, decoded, position) | worth_reading

    def walk(self, level: Tensor, position: int, code: Code) -> list[Tensor]:
        """Code all symbols that the map opens (level (1, 1, h, w)). Returns those of the volumes, (P, h, w) float32."""
        gains, size = self.autoencoder.gains, level.shape[2:]
        known = Known.of(level.new_zeros(1, len(self.coarse.groups), *size))
        self.coarse.walk(known, level, self.coarse.usual_scales(gains, position), code)
        coarse, room = known.symbols[:, 1:], level.new_zeros(1, len(self.fine.groups), *(2 * side for side in size))
        known = Known.of(torch.cat([spread(coarse), room], 1))
        self.fine.walk(known, spread(level), self.fine.usual_scales(gains, position), code)
        return [coarse[0], known.symbols[0, 1 + self.fine.first_plane :]]

    def rounded(self) -> dict[str, Tensor]:
        """The state of the networks in which integer convolutions have kernels, as a weights file has it."""
        out = self.state_dict() | {f"autoencoder.{k}": v for k, v in self.autoencoder.shipped().items()}
        out |= {f"importance.{k}": v.half() for k, v in self.importance.state_dict().items()}
        return out | integer.shipped(self)

    @torch.no_grad()
    def shipped(self, pictures: list[np.ndarray]) -> dict[str, Tensor]:
        """The networks, the CNN in integers, and the map's tables. Nothing is left for the pictures to calibrate."""
        return self.rounded() | {"tables": self.map_prior.tables()}

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        """Weights of `hyperprior` are welcome, too: what they lack stays as it is."""
        state, convolutions = self.state_dict(), integer.shipped(self)
        self.load_state_dict({k: v for k, v in shipped.items() if k in state and k not in convolutions}, strict=False)
        integer.start_from(self, convolutions | {k: v for k, v in shipped.items() if k in convolutions})


class Context3dCodec:
    """Two streams. `map`: the position (2 bytes), then the range coder's bytes. `latents`: the range coder's bytes,
    plane after plane."""

    card = ModelCard(
        name="context3d",
        paper="Mentzer, Agustsson, Tschannen, Timofte, Van Gool, Conditional Probability Models for Deep Image "
        "Compression, CVPR 2018 (arXiv 1801.04260)",
        purpose="learned centres, an importance map and a 3-D context model, trained for MS-SSIM, for comparison",
        lossy=True,
        lossless=False,
        streams=("map", "latents"),
    )

    def __init__(self, device: torch.device, weights: str | None = None):
        tensors, self.weights = weight_files.load(Path(__file__).parent, self.card.name, weights)
        self.family = importance.family(tensors.pop("tables"))
        networks = Networks(kernel_for(device))
        networks.load_state_dict(tensors)
        self.networks, self.autoencoder, self.device = networks.to(device).eval(), networks.autoencoder, device

    @staticmethod
    def trainable() -> Networks:
        return Networks(TrainableConv2d)

    def compress(self, planes: Tensor, shape: PlaneShape, settings: Settings) -> Streams:
        position = gain.quality_position(settings.quality)
        level, symbols = self.opened(latents_of(planes.to(self.device), shape, self.autoencoder), position)
        encoder = Encoder()
        importance.encode(encoder, level[0, 0].long().cpu().numpy(), self.family)
        map_stream, encoder = gain.write_position(position, encoder.bytes()), Encoder()

        def code(plane: int, positions: Tensor, frequencies: NDArray[np.float64]) -> NDArray[np.integer]:
            values = symbols[plane].flatten()[positions].long().cpu().numpy()
            encoder.encode_each(values + REACH, frequencies)
            return values

        self.networks.walk(level, position, code)
        return {"map": map_stream, "latents": encoder.bytes()}

    def opened(self, latents: Tensor, position: int) -> tuple[Tensor, list[Tensor]]:
        """The importance map (1, 1, h, w) of latents (LATENTS, h, w), 0 to GROUPS, and the planes' symbols."""
        at = latents.new_tensor([position / OCTAVE])
        scaled = latents[None] * self.autoencoder.gains.before(at)
        level, _, symbols = self.networks.opened(scaled, at, [part.symbols for part in self.networks.quantise(scaled)])
        return level, [plane for volume in symbols for plane in volume[0]]

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        position, data = gain.read_position(streams["map"])
        level = torch.from_numpy(importance.decode(Decoder(data), latent_size(shape), self.family))
        decoder, ended = Decoder(streams["latents"], incomplete=view.truncated), False

        def code(plane: int, positions: Tensor, frequencies: NDArray[np.float64]) -> NDArray[np.integer]:
            nonlocal ended
            if not ended:
                try:
                    numbers = decoder.decode_each(frequencies)
                    if ((numbers < 0) | (numbers >= CENTRES)).any():
                        raise FormatError("the coded data is damaged: a centre that there isn't")
                    return numbers - REACH
                except FormatError:  # what is missing is zero
                    if not view.truncated:
                        raise
                    ended = True
            return np.zeros(len(positions), np.int64)

        symbols = self.networks.walk(level.float()[None, None].to(self.device), position, code)
        volumes = zip(self.networks.volumes, symbols, strict=True)
        steps = from_grids(*(volume.dequantise(some, self.networks.centres)[None] for volume, some in volumes))
        latents = self.autoencoder.gains.dequantise(steps[0], position)
        return view.of(planes_of(latents, shape, self.autoencoder.synthesise), shape)
