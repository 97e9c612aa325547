"""A training step of `wavelet` that never waits for the host, so that a CUDA graph can hold it; and its parameters.

Activations and gradients are bfloat16, channels last. The trellis is a kernel (kernels.cu), compiled on first use;
without a GPU a C++ compiler makes one for tests.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lic.layers import coefficients, lifting, tiles, trellis, visibility
from lic.layers.amounts import _RIDGE, CORRECTIONS, unfolded
from lic.layers.band_prior import LEVELS, STEP_UNIT, Pass, walk
from lic.layers.coefficients import logistic_bits, scaled
from lic.layers.integer import Scale, TrainableConv2d
from lic.layers.perceptual import ms_ssim, ssimulacra2
from lic.models.wavelet import _TRAINING_LAGRANGIAN, WEIGHTING, Networks

_PATH = 512  # coefficients, also those that aren't in the trellis
_MARGIN = 16  # pixels at a crop's border that the filter's loss leaves out
_BELIEF = 4000  # coefficients that a point counts as much as: eight times lic's, as batches are larger


@lru_cache
def _kernels() -> ctypes.CDLL:
    """kernels.cu, with the constants of lic."""
    before = trellis._BEFORE.tolist()
    constants = {
        "SCALES": coefficients.SCALES, "MEANS": coefficients.MEANS, "TABLES": trellis.TABLES, "FIRST": trellis.FIRST,
        "BROAD": trellis.BROAD, "REACH": trellis.REACH, "POINTS_REACH": trellis._POINTS_REACH, "UNIT": trellis._UNIT,
        "SURE_UNIT": trellis._SURE_UNIT, "FRACTION": lifting.FRACTION, "STATES": 2**trellis._MEMORY,
        "SCALE_FACTOR": 3 * coefficients._SCALES_PER_E, "NOT_IN_TRELLIS": 255,
        "SCALE_OFFSET": round(coefficients._NARROWEST * coefficients._SCALES_PER_E * 256) + 128,
        "BEFORE_VALUES": str(before).translate(str.maketrans("[]", "{}", " ")),
    }  # fmt: skip
    nvcc = ["nvcc", "-O3", "-arch=native", "--fmad=false", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]
    plain = ["g++", "-O2", "-ffp-contract=off", "-fPIC", "-x", "c++", "-DCPU"]
    source = Path(__file__).parent / "kernels.cu"
    with tempfile.TemporaryDirectory() as folder:
        library, header = Path(folder) / "kernels.so", Path(folder) / "constants.h"
        header.write_text("".join(f"#define {name} {value}\n" for name, value in constants.items()))
        compiler = nvcc if torch.cuda.is_available() else plain
        command = [*compiler, "-include", str(header), "-shared", str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(library))


def _launch(name: str, *arguments: Tensor | int | float) -> None:
    """A function of kernels.cu, on the stream at hand."""
    stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_available() else 0
    kinds: dict[type, Any] = {Tensor: lambda t: ctypes.c_void_p(t.data_ptr()), int: ctypes.c_int, float: ctypes.c_float}
    getattr(_kernels(), name)(ctypes.c_void_p(stream), *(kinds[type(x)](x) for x in arguments))


class _Requantise(torch.autograd.Function):
    """As `lic.layers.integer._Requantise`, of bfloat16 sums."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, bias: Tensor, factor: Tensor, scale: Scale) -> Tensor:
        sums = sums.contiguous(memory_format=torch.channels_last)
        out, inside = torch.empty_like(sums), torch.empty_like(sums, dtype=torch.uint8)
        limits = float(scale.low), float(scale.high)
        _launch("requantise", sums, bias.contiguous(), factor, out, inside, sums.shape[1], *limits, sums.numel())
        ctx.save_for_backward(inside, factor)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, factor = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(gradient)
        _launch("requantise_back", gradient, factor, inside, out, gradient.shape[1], gradient.numel())
        return out, out.sum((0, 2, 3), dtype=torch.float32), None, None


class DeviceConv2d(TrainableConv2d):
    """The convolution with integers that `Parameters` keeps: weights, biases, and what a unit of its sums is worth."""

    integer_weight: Tensor
    integer_bias: Tensor
    factor: Tensor

    @staticmethod
    def form(integers: Tensor, scale: Scale) -> Tensor:
        return integers.to(torch.bfloat16, memory_format=torch.channels_last)

    def forward(self, x: Tensor, bias: int | Tensor = 0) -> Tensor:
        sums = F.conv2d(x, self.integer_weight, padding=self.integer_weight.shape[2] // 2)
        if self.scale_out is None:
            return (sums.float() + self.integer_bias[bias].view(-1, 1, 1)) * self.factor.view(-1, 1, 1)
        out: Tensor = _Requantise.apply(sums, self.integer_bias[bias], self.factor, self.scale_out)
        return out


class Parameters:
    """All weights and all biases of some networks, each kind in one row, network after network, for Adam; and the
    integers that the convolutions use, which it keeps where graphs have them."""

    _BETAS = 0.9, 0.98
    _EXPONENTS_EVERY = 20  # steps

    def __init__(self, networks: list[nn.Module], device: torch.device):
        convolutions = [[m for m in n.modules() if isinstance(m, DeviceConv2d)] for n in networks]
        self._all = [m for group in convolutions for m in group]
        rows = [[m.weight.detach().permute(0, 2, 3, 1) for m in self._all], [m.bias.detach() for m in self._all]]
        self._shapes = [[x.shape for x in row] for row in rows]
        self.values = [torch.cat([x.flatten() for x in row]).to(device) for row in rows]
        self.average = [x.clone() for x in self.values]
        self._scales = [torch.zeros_like(x) for x in self.values]
        self._first, self._second = ([torch.zeros_like(x) for x in self.values] for _ in range(2))
        self._integers = [self.values[0].bfloat16(), self.values[1].clone()]
        self.gradients = [torch.zeros_like(x) for x in self._integers]
        self.steps = 0
        self._groups = []
        begin = [0, 0]
        for group in convolutions:
            end = [begin[0] + sum(m.weight.numel() for m in group), begin[1] + sum(m.bias.numel() for m in group)]
            self._groups.append([slice(*x) for x in zip(begin, end, strict=True)])
            begin = end
        views = [self._split(x) for x in (self._integers, self.gradients)]
        for m, (weight, bias), (weight_gradient, bias_gradient) in zip(self._all, *views, strict=True):
            m.integer_weight = weight.permute(0, 3, 1, 2).detach().requires_grad_()
            m.integer_weight.grad = weight_gradient.permute(0, 3, 1, 2)
            m.integer_bias = bias.detach().requires_grad_()
            m.integer_bias.grad = bias_gradient
            m.factor = torch.zeros(len(weight), device=device)
        self.use(self.values)

    def _split(self, rows: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Weights (out, height, width, in) and biases of each convolution, as views."""
        parts = (
            [x.view(shape) for x, shape in zip(row.split([s.numel() for s in shapes]), shapes, strict=True)]
            for row, shapes in zip(rows, self._shapes, strict=True)
        )
        return list(zip(*parts, strict=True))

    @torch.no_grad()
    def use(self, values: list[Tensor]) -> None:
        """Let the convolutions compute with these, as `TrainableConv2d.integers` has them."""
        for m, (weight, _), scales in zip(self._all, self._split(values), self._split(self._scales), strict=True):
            largest = weight.abs().amax((1, 2, 3)).clamp_min(2.0**-20)
            exponent = torch.floor(torch.log2(127 / largest)).clamp(-8, 20)
            scales[0].copy_(torch.exp2(exponent).view(-1, 1, 1, 1).expand_as(scales[0]))
            scales[1].copy_(torch.exp2(exponent + m.scale_in.exponent).expand_as(scales[1]))
            out = m.scale_out.exponent if m.scale_out else 0
            m.factor.copy_(torch.exp2(out - exponent - m.scale_in.exponent))
        self._round(values)

    def _round(self, values: list[Tensor]) -> None:
        self._integers[0].copy_((values[0] * self._scales[0]).round_().clamp_(-127, 127))
        self._integers[1].copy_((values[1] * self._scales[1]).round_())

    @torch.no_grad()
    def update(self, rates: list[float]) -> None:
        """A step of Adam on the gradients at hand, clipped for each network, which has a rate of its own; and of the
        average."""
        self.steps += 1
        gradients = [g.float() * scale for g, scale in zip(self.gradients, self._scales, strict=True)]
        gradients[0] *= (self.values[0] * self._scales[0]).abs() <= 127.5
        for group in self._groups:
            parts = [g[part] for g, part in zip(gradients, group, strict=True)]
            norm = torch.stack([part.square().sum() for part in parts]).sum().sqrt()
            for part in parts:
                part.mul_((1 / (norm + 1e-6)).clamp(max=1))
        one, two = self._BETAS
        keep = min(0.998, self.steps / (self.steps + 20))
        for kind, gradient in enumerate(gradients):
            self._first[kind].lerp_(gradient, 1 - one)
            self._second[kind].mul_(two).addcmul_(gradient, gradient, value=1 - two)
            size = (self._second[kind] / (1 - two**self.steps)).sqrt_().add_(1e-8)
            for network, rate in zip(self._groups, rates, strict=True):
                row = network[kind]
                step = -rate / (1 - one**self.steps)
                self.values[kind][row].addcdiv_(self._first[kind][row], size[row], value=step)
            self.average[kind].lerp_(self.values[kind], 1 - keep)
        if self.steps % self._EXPONENTS_EVERY:
            self._round(self.values)
        else:
            self.use(self.values)

    @torch.no_grad()
    def write_back(self) -> None:
        """The average into the networks' own parameters, which the rest of lic knows."""
        for m, (weight, bias) in zip(self._all, self._split(self.average), strict=True):
            m.weight.copy_(weight.permute(0, 3, 1, 2))
            m.bias.copy_(bias)


class Batch(NamedTuple):
    """pixels (N, 3, side, side) uint8, matrices (N, 3, 3) of the planes, steps (N,) int64 in 1 / STEP_UNIT, and the
    share (N,) of the post-filter's first correction that isn't coded.

    The first of them are coded for tune="psnr", the others for tune="visual"."""

    pixels: Tensor
    matrices: Tensor
    steps: Tensor
    shares: Tensor


class Seen(NamedTuple):
    """Of each picture for tune="visual": how near the filter brings it, and the share of the squared error that it
    leaves."""

    ssimulacra2: Tensor
    ms_ssim: Tensor
    left: Tensor


class Losses(NamedTuple):
    """Of each picture (N,): bits per pixel. Of those for tune="psnr": squared errors, in squared steps, before the
    filter, after its first correction, and after the best amounts of all. And what is seen of the others, if any."""

    bits: Tensor
    before: Tensor
    plain: Tensor
    best: Tensor
    seen: Seen | None


class _Finer:
    """By how many quarters of an octave steps are smaller than the pictures', of which the first have plain ones."""

    def __init__(self, steps: Tensor, plain: int):
        self._steps = steps.int().view(-1, 1, 1, 1)
        self._plain = plain
        self._low: Tensor | None = None

    def of(self, this: Pass) -> Tensor:
        """(N, channels, h/2, w/2) int32."""
        if self._low is not this.low:
            self._low = this.low
            self._quarters = visibility.finer(this.low, self._steps, this.level) + WEIGHTING["visual"][this.level - 1]
            self._quarters[: self._plain] = 0
        return this.of_bands(self._quarters)


def _times(matrices: Tensor, planes: Tensor) -> Tensor:
    """Matrices (N, 3, 3) times each pixel of planes (N, 3, H, W)."""
    return torch.stack([(matrices[:, i, :, None, None] * planes).sum(1) for i in range(3)], 1)


class Coder:
    """Codes batches as lic.models.wavelet does; the points follow what it codes."""

    def __init__(self, networks: Networks, device: torch.device):
        self.networks = networks
        self.prices = trellis.logistic_costs().to(device).contiguous()  # of symbols, see `trellis.Prices`
        self.points = networks.points.float().to(device)
        self._sums, self._counts = torch.zeros(2, trellis.POINTS, device=device)
        self._eye = torch.eye(CORRECTIONS, device=device)

    def losses(self, batch: Batch, plain: int) -> Losses:
        """plain: how many of the pictures are coded for tune="psnr"."""
        side = batch.pixels.shape[2]
        visual = len(batch.steps) - plain
        filters = (plain, self.networks.post_filter), (visual, self.networks.visual_filter)
        with torch.no_grad():
            scales = STEP_UNIT / batch.steps.float().view(-1, 1, 1, 1)
            pixels = batch.pixels.float() - 128
            planes = _times(batch.matrices, pixels) * scales
            draft = self._coded(planes, batch.steps, plain, None)
            parts = zip(*(x.split([plain, visual]) for x in (draft, batch.steps)), filters, strict=True)
            added = torch.cat([unfolded(network(*part)[:, 0]) for *part, (count, network) in parts if count])
        bits: list[Tensor] = []
        picture = self._coded(planes - batch.shares.view(-1, 1, 1, 1) * added, batch.steps, plain, bits)
        inside = (..., slice(_MARGIN, side - _MARGIN), slice(_MARGIN, side - _MARGIN))
        error = (planes[:plain] - picture[:plain] / 2**lifting.FRACTION)[inside]
        corrections = unfolded(self.networks.post_filter(picture[:plain], batch.steps[:plain]))[inside]
        best = (self._amounts(corrections.detach(), error) * corrections).sum(1)
        squared = (x.square().mean((1, 2, 3)) for x in (error, error - corrections[:, 0], error - best))
        seen = self._seen(Batch(*(x[plain:] for x in batch)), picture[plain:], inside) if visual else None
        return Losses(torch.stack(bits).sum(0), *squared, seen)

    def _seen(self, batch: Batch, picture: Tensor, inside: tuple[Any, ...]) -> Seen:
        correction = unfolded(self.networks.visual_filter(picture, batch.steps)[:, 0]).float()
        planes = picture[inside] / 2**lifting.FRACTION
        real_steps = (batch.steps.float() / STEP_UNIT).view(-1, 1, 1, 1)
        # The rows of a matrix of the planes are orthonormal but for what the columns, the colours, are multiplied by.
        inverse = (batch.matrices / batch.matrices.square().sum(1, keepdim=True)).transpose(1, 2)
        original = batch.pixels[inside].float()
        before, after = (_times(inverse, x * real_steps) + 128 for x in (planes, planes + correction[inside]))
        left, whole = ((original - x).square().mean((1, 2, 3)) for x in (after, before))
        return Seen(ssimulacra2(original, after), ms_ssim(original, after), left / (whole + 1e-9))

    def _coded(self, planes: Tensor, steps: Tensor, plain: int, bits: list[Tensor] | None) -> Tensor:
        """What planes in steps are decoded as, bits per pixel of each pass going to a list; or a draft, without one."""
        low, bands = lifting.analyse(planes, LEVELS)
        side = planes.shape[2]
        fineness = _Finer(steps, plain)

        def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
            finer = fineness.of(this)
            factor = torch.exp2(finer / 4)
            of_scale = log_scale + finer * (math.log(2) / 12)
            given = [x.detach().float().contiguous() for x in (this.of(bands) * factor, mean * factor, of_scale)]
            c, n = given[0], given[0].numel()
            given += [self.prices, self.points]
            empty = partial(torch.empty, device=c.device)
            value = empty(c.shape, dtype=torch.int32)
            if bits is None:
                _launch("draft", *given, _TRAINING_LAGRANGIAN, value, n)
                return scaled(value, -finer)
            paths = max(1, n // _PATH)
            kept = [
                empty(4, n),
                empty(4, n, dtype=torch.int16),
                empty(n, dtype=torch.int16),
                empty(n, dtype=torch.uint8),
            ]
            lower, upper = torch.empty_like(c), torch.empty_like(c)
            found = self._sums, self._counts
            _launch("quantise", *given, _TRAINING_LAGRANGIAN, *kept, value, lower, upper, *found, paths, n)
            costs = logistic_bits(lower / factor, upper / factor, mean, log_scale)
            bits.append(costs.sum((1, 2, 3)) / side**2)
            return scaled(value, -finer)

        start = low.round().int() << lifting.FRACTION
        return walk(self.networks.priors, start, side, side, steps, code, tiles.plan(side, side, LEVELS))

    def begin(self) -> None:
        """Forget where coefficients were."""
        self._sums.zero_()
        self._counts.zero_()

    def move_points(self) -> None:
        """As `trellis.Centroids.moved`, for what was coded since then."""
        self.points.copy_((self._sums + _BELIEF * self.points) / (self._counts + _BELIEF))

    def _amounts(self, corrections: Tensor, error: Tensor) -> Tensor:
        """As `amounts.least_squares`, by elimination: a library's solver would ask whether it worked."""
        a, b = corrections.transpose(1, 2).flatten(3), error.flatten(2)[..., None]
        ridge = a.shape[3] * _RIDGE
        rows = torch.cat([a @ a.transpose(2, 3) + ridge * self._eye, a @ b + ridge * self._eye[0][:, None]], 3)
        for i in range(CORRECTIONS):
            row = rows[:, :, i : i + 1] / rows[:, :, i : i + 1, i : i + 1]
            rows = rows - rows[:, :, :, i : i + 1] * row * (1 - self._eye[i][:, None])
        amounts = rows[..., -1] / torch.diagonal(rows[..., :-1], dim1=2, dim2=3)
        return amounts.transpose(1, 2)[..., None, None]
