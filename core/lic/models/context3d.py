"""`context3d`: Mentzer, Agustsson, Tschannen, Timofte, Van Gool, "Conditional Probability Models for Deep Image
Compression" (CVPR 2018, arXiv 1801.04260).

    picture -> analysis -> * gains -+-> nearest centres -> mask ------> / gains -> synthesis -> picture
                                    |        symbols        |
                                    +-> importance map -----+-> entropy coder
                                                                  ^ probabilities of the centres
                                           symbols coded before -> masked 3-D CNN

What makes it that system: scalar quantisation to learned centres with soft-to-hard gradients (section 3.2,
lic.layers.centres); an importance map, which says how many channels are spent at each position (section 3.3,
lic.layers.importance); a causal 3-D CNN over channel, row and column, whose weights all channels share, that gives each
symbol's probabilities (section 3.4); the cost is MS-SSIM's and the cross-entropy of what the map opens.

What differs: transforms and gain units are those of `hyperprior`, from which it starts. So there are two volumes: the
coarse one with 192 channels, 16 pixels a position, and the fine one with 144 channels, 8 pixels a position. Symbols are
coded channel after channel, low frequencies first, each in two phases, a checkerboard's black and then its white
fields, where the paper's order is serial. The neighbours of a channel are those nearest in frequency. The map is coded
first, and what it closes isn't coded at all, where in the paper zeros are. Channels of great range are coded in two or
three digits, each a plane of its own: multiples of 64 centres, of 8, and the rest.

The CNN works in integers (lic.layers.integer) on what both sides decode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

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
from lic.layers.autoencoder import LATENTS, SPLIT, Autoencoder, latent_size, latents_of, planes_of
from lic.layers.centres import CENTRES, REACH, Centres, first_logarithms
from lic.layers.gain import OCTAVE
from lic.layers.importance import GROUPS, ImportanceNetwork, MapPrior
from lic.layers.integer import Convolution, QuickConv2d, TrainableConv2d, kernel_for, rectified, signed

_CHANNELS = 4 * SPLIT, LATENTS // 4 - SPLIT  # of the coarse and of the fine volume
_FACTORS = 64, 8, 1  # of a channel's digits
_RELATIVES = 3  # neighbours of a plane along the channel axis
_WINDOWS = 8, 32  # planes before it whose magnitudes are added up
_SEEN = 2 * _RELATIVES + len(_WINDOWS) + 2
_FEATURES, _HIDDEN = 24, 32
_KNOWN, _ACTIVATIONS = signed(4), rectified(4)
_SCALES = 32  # logarithms of usual scales that the CNN's last bias knows: -6, -5.5, ... 9.5
_EXPONENTS = np.array([round(2 ** (16 - i / OCTAVE)) for i in range(17 * OCTAVE)], np.int64)


def to_volumes(latents: Tensor) -> list[Tensor]:
    """(N, LATENTS, h, w) -> (N, 192, h, w) and (N, 144, 2h, 2w)."""
    return [latents[:, : 4 * SPLIT], F.pixel_shuffle(latents[:, 4 * SPLIT :], 2)]


def from_volumes(coarse: Tensor, fine: Tensor) -> Tensor:
    return torch.cat([coarse, F.pixel_unshuffle(fine, 2)], 1)


def _spread(x: Tensor) -> Tensor:
    """(..., h, w) -> (..., 2h, 2w), each position four times."""
    return x.repeat_interleave(2, -2).repeat_interleave(2, -1)


class Channel(NamedTuple):
    """Where a channel of a volume lies: its colour plane, and its rows' and columns' frequency, 1 being Nyquist's."""

    colour: int
    rows: float
    columns: float

    @staticmethod
    def of(fine: int, number: int) -> Channel:
        """The packet's band at each level is in the number (lic.layers.autoencoder)."""
        third = number + SPLIT if fine else number // 4  # the number after three levels
        first, bands = third // 16, [third // 4 % 4, third % 4] + ([] if fine else [number % 4])
        bands.insert(0, first // 3)
        return Channel(first % 3, _frequency([b // 2 for b in bands]), _frequency([b % 2 for b in bands]))

    def log2_scale(self) -> float:
        """The usual one, in finest steps: amplitudes fall with frequency (Field 1987). Fitted to `hyperprior`'s latents
        of a few training pictures, with an error of 0.3."""
        return (2.9, -0.1, -0.6)[self.colour] - 1.5 * math.log2(math.hypot(self.rows, self.columns))

    def distance(self, other: Channel) -> float:
        rows, columns = math.log2(self.rows / other.rows), math.log2(self.columns / other.columns)
        return rows**2 + columns**2 + 0.5 * (self.colour != other.colour)


def _frequency(high: list[int]) -> float:
    """high: at each level, whether the band is the upper one; what was filtered so before is upside down."""
    index = upside_down = 0
    for bit in high:
        upside_down ^= bit
        index = 2 * index + upside_down
    return (index + 0.5) / 2 ** len(high)


class Plane(NamedTuple):
    """A digit of a channel."""

    channel: int
    factor: int
    where: Channel


def _digits(fine: int, number: int) -> int:
    return 1 if fine else 3 if number % 64 == 0 else 2 if number % 64 < 16 else 1


_ALL_CHANNELS = [[Channel.of(fine, number) for number in range(count)] for fine, count in enumerate(_CHANNELS)]
# The planes of each volume, in the order of coding.
PLANES = [
    [
        Plane(number, factor, channels[number])
        for number in sorted(range(len(channels)), key=lambda number: -channels[number].log2_scale())
        for factor in _FACTORS[-_digits(fine, number) :]
    ]
    for fine, channels in enumerate(_ALL_CHANNELS)
]


def _group(channel: Channel) -> int:
    """The group of the importance map that opens the channel; the first ones are small."""
    larger = [
        sum(other.log2_scale() > channel.log2_scale() for other in channels) * weight
        for channels, weight in zip(_ALL_CHANNELS, (1, 4), strict=True)
    ]
    return int(GROUPS * (sum(larger) / LATENTS) ** 0.5)


def _relatives() -> Tensor:
    """For each plane of both volumes, the nearest that are coded before it, counted from 1; 0 for none."""
    planes = [plane.where for volume in PLANES for plane in volume]
    out = torch.zeros(len(planes), _RELATIVES, dtype=torch.long)
    for i, plane in enumerate(planes):
        nearest = sorted(range(i), key=lambda j: (plane.distance(planes[j]), -j))[:_RELATIVES]
        out[i, : len(nearest)] = torch.tensor(nearest, dtype=torch.long) + 1
    return out


class Known(NamedTuple):
    """What is known of the planes of both volumes, integers as float32, in the coding volume's size: symbols (N, 1 + P,
    h, w), the first plane being zero; totals (N, 1 + P, h, w), of their magnitudes over all planes so far."""

    symbols: Tensor
    totals: Tensor

    @staticmethod
    def of(planes: Tensor) -> Known:
        symbols = F.pad(planes, (0, 0, 0, 0, 1, 0))
        return Known(symbols, symbols.abs().cumsum(1))

    def spread(self) -> Known:
        return Known(_spread(self.symbols), _spread(self.totals))


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


class Context(nn.Module):
    """The masked 3-D CNN of a volume: two convolutions over rows, columns and the neighbours along the channel axis."""

    def __init__(self, conv: type[Convolution], planes: int):
        super().__init__()
        self.form = conv.form
        self.first = conv(_SEEN + 3, _FEATURES, 3, _KNOWN, _ACTIVATIONS, biases=planes)
        self.second = conv(2 * _FEATURES, _FEATURES, 3, _ACTIVATIONS, _ACTIVATIONS)
        self.hidden = conv(_FEATURES, _HIDDEN, 1, _ACTIVATIONS, _ACTIVATIONS)
        self.out = conv(_HIDDEN, CENTRES, 1, _ACTIVATIONS, None, biases=_SCALES)
        if isinstance(self.out, TrainableConv2d):
            self.out.weight.data *= 0.1
            self.out.bias.data = first_logarithms(torch.arange(_SCALES) / 2 - 6) / self.out.speed

    def features(self, seen: Tensor, own: Tensor, known: Tensor, plane: int | Tensor) -> Tensor:
        """seen (M, _SEEN, h, w) of earlier planes, own (M, 1, h, w) of this one, where known (1, 1, h, w) is 1 ->
        activations (M, _FEATURES, h, w)."""
        own = 4 * own * known
        x = torch.cat([seen, own, own.abs(), 16 * known.expand_as(own)], 1)
        return self.first(self.form(x, _KNOWN), plane)

    def join(self, features: Tensor, nearest: Tensor) -> Tensor:
        """With those of the nearest plane, all of which is known."""
        return self.second(torch.cat([features, nearest], 1))

    def logarithms(self, joined: Tensor, scale: int | Tensor) -> Tensor:
        """-> logarithms to base 2 of each centre's probability but for a constant, (M, CENTRES, h, w), real numbers."""
        return self.out(self.hidden(joined), scale)


def _checkerboard(x: Tensor) -> Tensor:
    """The phase of each position of x (..., h, w): (1, 1, h, w), 0 or 1."""
    rows, columns = (torch.arange(side, device=x.device) for side in x.shape[-2:])
    return ((rows[:, None] + columns) % 2)[None, None]


Code = Callable[[int, int, Tensor, NDArray[np.float64]], NDArray[np.integer]]  # see `Networks.walk`


class Networks(nn.Module):
    """A lic.training.loop.Trainable where conv is TrainableConv2d."""

    shrunk = 0.5
    relatives: Tensor

    def __init__(self, conv: type[Convolution]):
        super().__init__()
        self.autoencoder = Autoencoder()
        self.centres, self.map_prior = Centres(), MapPrior()
        self.importance = ImportanceNetwork(LATENTS)
        conv = QuickConv2d if conv is TrainableConv2d else conv
        self.contexts = nn.ModuleList([Context(conv, len(planes)) for planes in PLANES])
        self.register_buffer("relatives", _relatives(), persistent=False)
        for fine, planes in enumerate(PLANES):
            numbers = {
                "channels": [plane.channel for plane in planes],
                "factors": [plane.factor for plane in planes],
                "groups": [_group(plane.where) for plane in planes],
                "channel_groups": [_group(channel) for channel in _ALL_CHANNELS[fine]],
            }
            for name, values in numbers.items():
                self.register_buffer(f"{name}_{fine}", torch.tensor(values), persistent=False)

    def of(self, fine: int, name: str) -> Tensor:
        """What is known of the volume's planes: (P,)."""
        return cast(Tensor, getattr(self, f"{name}_{fine}"))

    def context(self, fine: int) -> Context:
        return cast(Context, self.contexts[fine])

    def quantise(self, fine: int, scaled: Tensor) -> Quantised:
        """A volume (N, C, h, w) in steps."""
        rest, numbers, rests, symbols = scaled, [], [], []
        for factor in _FACTORS:
            which = (self.of(fine, "factors") == factor).nonzero()[:, 0]
            channels = self.of(fine, "channels")[which]
            rests.append(rest[:, channels] / factor)
            digits, values = self.centres(rests[-1])
            rest = rest.index_add(1, channels, values * -factor)
            symbols.append(digits)
            numbers.append(which)
        order = torch.cat(numbers).argsort()
        return Quantised(torch.cat(symbols, 1)[:, order], torch.cat(rests, 1)[:, order], scaled - rest)

    def dequantise(self, fine: int, symbols: Tensor) -> Tensor:
        """(P, h, w) -> a volume in steps (C, h, w)."""
        values = self.centres.values(symbols) * self.of(fine, "factors")[:, None, None]
        out = values.new_zeros(_CHANNELS[fine], *symbols.shape[1:])
        return out.index_add(0, self.of(fine, "channels"), values)

    def last(self, symbols: list[Tensor]) -> Tensor:
        """How many groups it takes to open all symbols that aren't zero: (N, 1, h, w) float32."""
        coarse, fine = (
            ((s != 0) * (self.of(i, "groups") + 1.0)[:, None, None]).amax(1, keepdim=True)
            for i, s in enumerate(symbols)
        )
        return torch.maximum(coarse, F.max_pool2d(fine, 2))

    def usual_scales(self, fine: int, position: int) -> Tensor:
        """The logarithms of the planes' usual scales, in their units, (P,) int64 in 1 / OCTAVE."""
        ratios = self.autoencoder.gains.integer_log2_ratios(position)
        ratios = ratios[4 * SPLIT :: 4] if fine else ratios[: 4 * SPLIT]
        usual = [round(OCTAVE * (plane.where.log2_scale() - math.log2(plane.factor))) for plane in PLANES[fine]]
        channels = self.of(fine, "channels")
        return torch.tensor(usual, device=channels.device) - torch.from_numpy(ratios).to(channels.device)[channels]

    def seen(self, fine: int, known: Known, n: Tensor, k: Tensor, level: Tensor, usual: Tensor) -> Tensor:
        """What is known before planes k of pictures n (both (M,)) are coded, given the map's level (N, 1, h, w) and the
        planes' usual scales (M,): (M, _SEEN, h, w), integers -64..63."""
        at = k + fine * len(PLANES[0])
        relatives = known.symbols[n[:, None], self.relatives[at]]
        windows = [(known.totals[n, at] - known.totals[n, (at - window).clamp(min=0)])[:, None] for window in _WINDOWS]
        opened = 4 * (level[n] - self.of(fine, "groups")[k, None, None, None])
        scales = (usual >> 5).view(-1, 1, 1, 1).expand_as(opened)
        return torch.cat([4 * relatives, 4 * relatives.abs(), 2 * windows[0], windows[1], opened, scales], 1).clamp(
            _KNOWN.low, _KNOWN.high
        )

    def forward(self, pixels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A training step; without training, what its result is worth. Besides the usual: the map's mean level, and its
        share of the bits.

        In training the map is rounded at random, so that both a group and its absence are seen where it matters.
        """
        position = gain.positions(len(pixels), generator).to(pixels.device)
        gains = self.autoencoder.gains
        scaled = self.autoencoder.analyse(pixels) * gains.before(position)
        volumes = [self.quantise(fine, volume) for fine, volume in enumerate(to_volumes(scaled))]
        level, kept, symbols = self.opened(scaled, position, [volume.symbols for volume in volumes], generator)
        bits = map_bits = self.map_prior.bits(level, kept)
        values = []
        for fine, volume in enumerate(volumes):
            if fine:
                level, kept = _spread(level), _spread(kept)
            costs = self.costs(fine, symbols, volume.before, level, position)
            bits = bits + (costs * _mask(level, kept, self.of(fine, "groups"))).sum((1, 2, 3))
            values.append(volume.values * _mask(level, kept, self.of(fine, "channel_groups")))
        decoded = self.autoencoder.synthesise(from_volumes(*values) * gains.after(position))
        shares = {"level": level.mean(), "map_share": (map_bits / bits).mean()}
        return gain.structural_losses(bits, pixels, decoded, position) | shares

    def opened(
        self, scaled: Tensor, position: Tensor, symbols: list[Tensor], generator: torch.Generator | None = None
    ) -> Opened:
        """The importance map of latents in steps (N, LATENTS, h, w), whose volumes have those symbols."""
        last = self.last(symbols)
        kept = (last - self.importance(scaled, position)).clamp(min=0)
        random = torch.rand(last.shape, generator=generator).to(last.device) if self.training else 0.5
        level = (kept + random).floor().minimum(last)
        masked = [
            volume * ((_spread(level) if fine else level) > self.of(fine, "groups")[:, None, None])
            for fine, volume in enumerate(symbols)
        ]
        return Opened(self.last(masked), kept, masked)

    def costs(self, fine: int, symbols: list[Tensor], before: Tensor, level: Tensor, position: Tensor) -> Tensor:
        """In training: the bits of a volume's planes (N, P, h, w), zero where a plane is closed all over the picture.

        Forward the symbol's, backward the mean under the centres' shares of what was `before` quantisation, too.
        """
        context, first = self.context(fine), fine * len(PLANES[0])
        known = Known.of(torch.cat([_spread(symbols[0]), symbols[1]], 1) if fine else symbols[0])
        open_planes = (level > self.of(fine, "groups")[:, None, None]).flatten(2).any(2)  # the first ones of a picture
        n, k = open_planes.nonzero(as_tuple=True)
        usual = torch.stack([self.usual_scales(fine, int(p)) for p in (position * OCTAVE).round()])[n, k]
        seen, own = self.seen(fine, known, n, k, level, usual), symbols[fine][n, k][:, None]
        phase = _checkerboard(own)
        nearest = self.relatives[first + k, 0] - first
        whole = context.features(seen, own, torch.ones_like(phase), k)
        whole = F.pad(whole, (0, 0, 0, 0, 0, 0, 1, 0))[torch.where(nearest > 0, torch.arange(len(k)) - k + nearest, 0)]
        black, white = (context.join(context.features(seen, own, phase < number, k), whole) for number in range(2))
        logarithms = context.logarithms(torch.where(phase == 0, black, white), _bucket(usual)).float()
        costs = F.log_softmax(logarithms * math.log(2), 1) / -math.log(2)
        hard = costs.gather(1, own.long() + REACH)[:, 0]
        soft = (self.centres.shares(before[n, k]).movedim(-1, 1) * costs.detach()).sum(1)
        return torch.zeros_like(symbols[fine]).index_put((n, k), hard + soft - soft.detach())

    def walk(self, level: Tensor, position: int, code: Code) -> list[Tensor]:
        """Code all symbols that the map opens (level (1, 1, h, w)), given plane after plane; all in integers.

        code(fine, plane, positions, frequencies) gives the symbols of a plane at some of its positions (m,), which have
        those frequencies (m, 1 + CENTRES), an escape's first. Returns the volumes' symbols (P, h, w).
        """
        known = Known.of(level.new_zeros(1, 0, *level.shape[2:]))
        out: list[Tensor] = []
        for fine, planes in enumerate(PLANES):
            if fine:
                known, level = known.spread(), _spread(level)
            new = level.new_zeros(1, len(planes), *level.shape[2:])
            known = Known(*(torch.cat([old, new], 1) for old in known))
            context, first, phase = self.context(fine), fine * len(PLANES[0]), _checkerboard(level)
            usual = self.usual_scales(fine, position)
            features: list[Tensor] = []
            one = torch.zeros(1, dtype=torch.long, device=level.device)
            for plane, group in enumerate(self.of(fine, "groups").tolist()):
                where = level > group
                if not where.any():
                    break
                seen = self.seen(fine, known, one, one + plane, level, usual[plane : plane + 1])
                nearest = int(self.relatives[first + plane, 0]) - first
                own = torch.zeros_like(level)
                for number in range(2):
                    x = context.features(seen, own, phase < number, plane)
                    joined = context.join(x, features[nearest - 1] if nearest > 0 else torch.zeros_like(x))
                    positions = (where & (phase == number)).flatten().nonzero()[:, 0]
                    if len(positions):
                        logarithms = context.logarithms(
                            joined.flatten(2)[..., positions, None], int(_bucket(usual[plane]))
                        )
                        symbols = code(fine, plane, positions, _frequencies(logarithms[0, ..., 0]))
                        own.view(-1)[positions] = torch.from_numpy(symbols).to(own)
                features.append(context.features(seen, own, torch.ones_like(level), plane))
                known.symbols[:, first + plane + 1] = own[0]
                known.totals[:, first + plane + 1] = known.totals[:, first + plane] + own[0].abs()
            out.append(known.symbols[0, 1 + first :])
        return out

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


def _mask(level: Tensor, part: Tensor, groups: Tensor) -> Tensor:
    """What is open, given the map's level and the real number that it was rounded from (N, 1, h, w), of channels whose
    groups are given (C,): (N, C, h, w), 0 or 1; gradients are those of the last group's share (equation 6)."""
    groups = groups[:, None, None]
    share = (part - groups).clamp(0, 1)
    return (level > groups).float() + share - share.detach()


def _bucket(usual: Tensor) -> Tensor:
    """The index of the CNN's last bias."""
    return ((usual + 6 * OCTAVE + OCTAVE // 4) >> 7).clamp(0, _SCALES - 1)


def _frequencies(logarithms: Tensor) -> NDArray[np.float64]:
    """(CENTRES, m), exact in float32 -> frequencies (m, 1 + CENTRES), of an escape, which never comes, first."""
    integers = (logarithms * OCTAVE).round().long().cpu().numpy()
    below = (integers.max(0) - integers).clip(0, len(_EXPONENTS) - 1)
    return np.vstack([np.zeros_like(below[:1]), _EXPONENTS[below]]).T.astype(np.float64) + 1.0


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

        def code(fine: int, plane: int, positions: Tensor, frequencies: NDArray[np.float64]) -> NDArray[np.integer]:
            values = symbols[fine][0, plane].flatten()[positions].long().cpu().numpy()
            encoder.encode_each(values + REACH, frequencies)
            return values

        self.networks.walk(level, position, code)
        return {"map": map_stream, "latents": encoder.bytes()}

    def opened(self, latents: Tensor, position: int) -> tuple[Tensor, list[Tensor]]:
        """The importance map (1, 1, h, w) of latents (LATENTS, h, w), 0 to GROUPS, and the volumes' symbols."""
        at = latents.new_tensor([position / OCTAVE])
        scaled = latents[None] * self.autoencoder.gains.before(at)
        symbols = [self.networks.quantise(fine, volume).symbols for fine, volume in enumerate(to_volumes(scaled))]
        level, _, symbols = self.networks.opened(scaled, at, symbols)
        return level, symbols

    def decompress(self, streams: Streams, shape: PlaneShape, view: View) -> Tensor:
        position, data = gain.read_position(streams["map"])
        level = torch.from_numpy(importance.decode(Decoder(data), latent_size(shape), self.family))
        decoder, ended = Decoder(streams["latents"], incomplete=view.truncated), False

        def code(fine: int, plane: int, positions: Tensor, frequencies: NDArray[np.float64]) -> NDArray[np.integer]:
            nonlocal ended
            if not ended:
                try:
                    return decoder.decode_each(frequencies).clip(0, CENTRES - 1) - REACH
                except FormatError:  # what is missing is zero
                    if not view.truncated:
                        raise
                    ended = True
            return np.zeros(len(positions), np.int64)

        symbols = self.networks.walk(level.float()[None, None].to(self.device), position, code)
        values = from_volumes(*(self.networks.dequantise(fine, volume)[None] for fine, volume in enumerate(symbols)))
        latents = self.autoencoder.gains.dequantise(values[0], position)
        return view.of(planes_of(latents, shape, self.autoencoder.synthesise), shape)
