"""Integer convolutions: networks whose outputs are the same integers on every device.

After Ballé, Johnston, Minnen, "Integer networks for data compression with latent-variable models" (ICLR 2019).
An activation is an integer of 7 bits, a weight of 8, a sum of 32; sums are rescaled by powers of two with ties to
even. Nothing depends on the order of summation, so thread counts, kernels and devices cannot matter.

A tensor of activations comes in one of two forms, and every function here takes both:
    uint8    the integer plus the zero point of its `Scale`, for the int8 kernels of a CPU
    float32  the integer itself, for training and for devices without such kernels
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scale(NamedTuple):
    """How integers stand for real numbers: real = integer / 2**exponent, stored as integer + zero in 0..127."""

    exponent: int
    zero: int

    @property
    def low(self) -> int:
        return -self.zero

    @property
    def high(self) -> int:
        return 127 - self.zero


def signed(exponent: int) -> Scale:
    """Integers -64..63."""
    return Scale(exponent, 64)


def rectified(exponent: int) -> Scale:
    """Integers 0..127; quantising to it is the ReLU."""
    return Scale(exponent, 0)


class Convolution(nn.Module):
    """What a network is built from: a kernel of `kernel_for(device)` to run it, `TrainableConv2d` to train it.

    `scale_out=None` gives real numbers instead of activations. `biases` > 1 keeps several bias vectors to choose from.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, scale_in: Scale, scale_out: Scale | None, biases: int = 1
    ):
        super().__init__()
        self.kernel, self.scale_in, self.scale_out = kernel, scale_in, scale_out

    @staticmethod
    def form(integers: Tensor, scale: Scale) -> Tensor:
        """Integers in the range of scale -> activations."""
        raise NotImplementedError


def add(stream: Tensor, correction: Tensor) -> Tensor:
    """Saturating sum of two signed tensors of one scale."""
    if stream.dtype == torch.uint8:
        return (stream + correction).clamp_(64, 191).sub_(64)  # at most 254: no wrap
    return (stream + correction).clamp(-64, 63)


def rectify(x: Tensor) -> Tensor:
    """ReLU of a signed tensor, as a rectified one of the same exponent."""
    return x.clamp(min=64) - 64 if x.dtype == torch.uint8 else x.clamp(min=0)


class _Requantise(torch.autograd.Function):
    """Rescale, round half to even, saturate; the gradient passes straight through where nothing saturates."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, factor: Tensor, scale: Scale) -> Tensor:
        rounded = (sums.float() * factor).round_()
        out = rounded.clamp(scale.low, scale.high)
        ctx.save_for_backward(rounded == out, factor)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        inside, factor = ctx.saved_tensors
        return gradient * inside * factor, None, None


class TrainableConv2d(Convolution):
    """The convolution in training: float parameters, rounded on the way in (straight-through) to what will be shipped.

    Each output channel has a power-of-two weight scale of its own. Parameters are kept divided by `speed`, so that an
    optimiser whose steps have the size of the learning rate, as Adam's, moves them that much faster.
    """

    speed = 1.0

    def __init__(
        self, inputs: int, outputs: int, kernel: int, scale_in: Scale, scale_out: Scale | None, biases: int = 1
    ):
        super().__init__(inputs, outputs, kernel, scale_in, scale_out, biases)
        start = nn.Conv2d(inputs, outputs, kernel)
        self.weight = nn.Parameter(start.weight.detach() / self.speed)
        self.bias = nn.Parameter(cast(Tensor, start.bias).detach().repeat(biases, 1) / self.speed)

    @staticmethod
    def form(integers: Tensor, scale: Scale) -> Tensor:
        return integers.float().contiguous(memory_format=torch.channels_last)

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights -127..127 (float32), biases in units of the sums, binary exponents of the weights' scales."""
        weight, bias = self.weight * self.speed, self.bias * self.speed
        with torch.no_grad():
            largest = weight.abs().amax((1, 2, 3)).clamp_min(2.0**-20)
            exponent = torch.floor(torch.log2(127 / largest)).clamp(-8, 20)
        weight = weight * torch.exp2(exponent).view(-1, 1, 1, 1)
        bias = bias * torch.exp2(exponent + self.scale_in.exponent)
        return _round(weight).clamp(-127, 127), _round(bias), exponent

    def forward(self, x: Tensor, bias: int | Tensor = 0) -> Tensor:
        """bias: the number of the vector, or one number for each of x (N,)."""
        weight, biases, exponent = self.integers()
        if isinstance(bias, Tensor):
            sums = F.conv2d(x, weight, padding=weight.shape[2] // 2) + biases[bias][..., None, None]
        else:
            sums = F.conv2d(x, weight, biases[bias], padding=weight.shape[2] // 2)
        factor = torch.exp2(-exponent - self.scale_in.exponent).view(1, -1, 1, 1)
        if self.scale_out is None:
            return sums.float() * factor
        return _Requantise.apply(sums, factor * 2.0**self.scale_out.exponent, self.scale_out)

    def shipped(self) -> dict[str, Tensor]:
        """The state of an `IntegerConv2d` that computes the same.

        Raises ValueError where a sum could reach 2**24, beyond which float32 no longer holds every integer.
        """
        weight, bias, exponent = self.integers()
        if ((weight.abs().sum((1, 2, 3)) * 127 + bias.abs()) >= 2**24).any():
            raise ValueError("a convolution's sums could reach 2**24: its weights or biases are too large")
        return {"weight": weight.to(torch.int8), "bias": bias.to(torch.int32), "exponent": exponent.to(torch.int8)}

    def start_from(self, shipped: dict[str, Tensor]) -> None:
        """Go on from the state of an `IntegerConv2d`."""
        exponent = shipped["exponent"].float()
        with torch.no_grad():
            self.weight.copy_(shipped["weight"] * torch.exp2(-exponent).view(-1, 1, 1, 1) / self.speed)
            self.bias.copy_(shipped["bias"] * torch.exp2(-exponent - self.scale_in.exponent) / self.speed)


class QuickConv2d(TrainableConv2d):
    """For networks that start from nothing among others that are trained already."""

    speed = 10.0


def _round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class IntegerConv2d(Convolution):
    """The convolution as shipped: int8 weights, int32 biases in units of the sums, binary exponents of the weights."""

    exponent: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, scale_in: Scale, scale_out: Scale | None, biases: int = 1
    ):
        super().__init__(inputs, outputs, kernel, scale_in, scale_out, biases)
        self.register_buffer("weight", torch.zeros(outputs, inputs, kernel, kernel, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(biases, outputs, dtype=torch.int32))
        self.register_buffer("exponent", torch.zeros(outputs, dtype=torch.int8))

    def factors(self) -> Tensor:
        """What a unit of each output channel's sums is worth, in units of the output."""
        out = self.scale_out.exponent if self.scale_out else 0
        return torch.exp2(out - self.scale_in.exponent - self.exponent.float())

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.kernel // 2] * 4, value=self.scale_in.zero if x.dtype == torch.uint8 else 0)


class PortableConv2d(IntegerConv2d):
    """For any device: integers in float32, exact since every partial sum stays below 2**24 (see `shipped`).

    A matrix product over unfolded patches: no Winograd or Fourier transform, whose sums are not of integers.
    """

    @staticmethod
    def form(integers: Tensor, scale: Scale) -> Tensor:
        return integers.float()

    def forward(self, x: Tensor, bias: int = 0) -> Tensor:
        n, _, h, w = x.shape
        patches = F.unfold(self.pad(x), self.kernel) if self.kernel > 1 else x.flatten(2)
        sums = self.weight.float().flatten(1) @ patches + self.bias[bias].float().view(-1, 1)
        real = (sums * self.factors().view(1, -1, 1)).view(n, len(self.weight), h, w)
        if self.scale_out is None:
            return real
        return real.round_().clamp_(self.scale_out.low, self.scale_out.high)


class Int8Conv2d(IntegerConv2d):
    """For a CPU: uint8 × int8 -> int32 by oneDNN, the op that torch's own compiler emits.

    Activations of 7 bits keep it exact on processors without VNNI, where products are summed in pairs of 16 bits.
    """

    _LEAST = 100  # positions: with less than 96, oneDNN packs weights anew for each call, 96 x 96 x 3 x 3 in 4 ms

    @staticmethod
    def available() -> bool:
        return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qconv2d_pointwise")

    @staticmethod
    def form(integers: Tensor, scale: Scale) -> Tensor:
        return (integers + scale.zero).to(torch.uint8, memory_format=torch.channels_last)

    def _prepare(self) -> None:
        """Pack the weights and fold the zero points into the biases, once."""
        if not hasattr(self, "_packed"):
            factors = self.factors()
            offset = self.bias - self.scale_in.zero * self.weight.int().sum((1, 2, 3))
            self._biases = offset.float() * factors + (self.scale_out.zero if self.scale_out else 0)
            self._zeros = torch.zeros_like(factors, dtype=torch.int64)
            self._factors = factors
            # The last one: other threads may be looking.
            self._packed = torch.ops.onednn.qconv_prepack(self.weight, factors, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)

    def forward(self, x: Tensor, bias: int = 0) -> Tensor:
        self._prepare()
        height, width = x.shape[2:]
        below = -(-self._LEAST // width) - height
        if self.kernel > 1 and below > 0:
            x = F.pad(x, [0, 0, 0, below], value=self.scale_in.zero)
        margin = [self.kernel // 2] * 2
        if self.kernel > 1 and self.scale_in.zero:  # the operator pads with stored zeros
            x, margin = self.pad(x), [0, 0]
        dtype, post = (torch.uint8, "hardtanh") if self.scale_out else (torch.float32, "none")
        limits = [0.0, 127.0] if self.scale_out else []
        out = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, 0, self._packed, self._factors, self._zeros, self._biases[bias],
            [1, 1], margin, [1, 1], 1, 1.0, 0, dtype, post, limits, "",
        )  # fmt: skip
        return out[..., :height, :]


def kernel_for(device: torch.device) -> type[IntegerConv2d]:
    """The fastest of the exact kernels there."""
    return Int8Conv2d if device.type == "cpu" and Int8Conv2d.available() else PortableConv2d


def learns(part: nn.Module) -> bool:
    """Whether anything in it is to be trained."""
    return any(parameter.requires_grad for parameter in part.parameters())


def shipped(networks: nn.Module) -> dict[str, Tensor]:
    """The state of all its trainable convolutions, as `IntegerConv2d` has it."""
    out: dict[str, Tensor] = {}
    for name, layer in networks.named_modules():
        if isinstance(layer, TrainableConv2d):
            out |= {f"{name}.{field}": tensor for field, tensor in layer.shipped().items()}
    return out


def start_from(networks: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse: let all trainable convolutions go on from what was shipped."""
    for name, layer in networks.named_modules():
        if isinstance(layer, TrainableConv2d):
            layer.start_from({field: state[f"{name}.{field}"] for field in ("weight", "bias", "exponent")})
