"""How much of each of the post-filter's corrections a picture needs: in the file, block by block.

The encoder finds the amounts by least squares. After adaptive loop filters (Tsai et al., "Adaptive Loop Filtering for
Video Coding", 2013), whose corrections are the neighbouring samples; here a network makes them.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lic.entropy import Decoder, Encoder, Table
from lic.errors import FormatError, TruncatedError
from lic.layers.coefficients import MEANS, SCALES, predicted, scale_of, unpredicted
from lic.layers.tiles import Area

CORRECTIONS = 4
_RIDGE = 1e-4  # squared steps a pixel; errors have some 0.03 of them
_BLOCK = 256  # pixels, the sides of the smallest blocks that amounts are found for
_LARGEST = 16  # the binary logarithm of the largest blocks' sides over that: as large as pictures are
_UNIT = 16  # amounts are coded as multiples of 1 / _UNIT


class Amounts:
    """numbers: integers (CORRECTIONS, channels, rows, columns) in 1 / _UNIT, of blocks of _BLOCK << size pixels."""

    def __init__(self, numbers: NDArray[np.integer], size: int):
        self.numbers, self.size = torch.from_numpy(numbers.astype(np.int32)), size

    @staticmethod
    def usual(channels: int) -> Amounts:
        """The first correction, everywhere."""
        return Amounts(_USUAL.repeat(channels, 1), _LARGEST)

    def mixed(self, corrections: Tensor, area: Area) -> Tensor:
        """The first corrections (1, k, 12, h/2, w/2) in steps, folded, of an area of the picture with an even corner ->
        what is to be added to it, (1, 3, h, w) int32 in 1/64 steps."""
        side = _BLOCK << self.size
        sums = torch.zeros_like(corrections[:, 0], dtype=torch.int32)
        for block in area.blocks(side):
            here = block.coarser().within(area.coarser())
            amounts = self.numbers[..., block.top // side, block.left // side]
            for amount, correction in zip(amounts, corrections[0], strict=False):
                if amount.any():
                    factors = F.pad(amount, (0, 3 - len(amount))).repeat(4).view(-1, 1, 1).to(sums.device)
                    sums[0][here] += (correction[here] * 64).round_().int() * factors
        mixed = (sums + _UNIT // 2) >> _UNIT.bit_length() - 1
        return unfolded(mixed)[..., : area.bottom - area.top, : area.right - area.left]

    def to_bytes(self, tables: list[Table]) -> bytes:
        """Nothing, for the usual ones; or their size, and the table scale of all, a byte each, and a range coder's."""
        numbers = self.numbers.numpy() - _USUAL
        if not numbers.any():
            return b""
        residuals = predicted(numbers.reshape(-1, *numbers.shape[2:]))
        scale, encoder = scale_of(residuals), Encoder()
        encoder.encode_shared(residuals.ravel(), tables[scale * MEANS])
        return bytes([self.size, scale]) + encoder.bytes()

    @staticmethod
    def from_bytes(stream: bytes, tables: list[Table], channels: int, height: int, width: int) -> Amounts:
        """Of a picture. Raises FormatError."""
        if not stream:
            return Amounts.usual(channels)
        if len(stream) < 2:
            raise TruncatedError("the post-filter's amounts are cut off")
        size, scale = stream[:2]
        if size > _LARGEST or scale >= SCALES:
            raise FormatError("the post-filter's amounts are damaged")
        rows, columns = (-(-side // (_BLOCK << size)) for side in (height, width))
        planes = CORRECTIONS * channels
        residuals = Decoder(stream[2:]).decode_shared(planes * rows * columns, tables[scale * MEANS])
        numbers = unpredicted(residuals.reshape(planes, rows, columns)).clip(-_MOST, _MOST)
        return Amounts(numbers.reshape(CORRECTIONS, channels, rows, columns) + _USUAL, size)


_USUAL = np.array([_UNIT] + [0] * (CORRECTIONS - 1), np.int32).reshape(-1, 1, 1, 1)
_MOST = 2**10  # amounts beyond which only damage goes


def unfolded(x: Tensor) -> Tensor:
    """Squares of 2x2 out of channels: (..., 4 C, h, w), for rows, columns and then C -> (..., C, 2h, 2w)."""
    squares = x.movedim(-3, -1).unflatten(-1, (2, 2, x.shape[-3] // 4))  # ..., h, w, 2, 2, C
    return squares.movedim(-3, -4).flatten(-5, -4).flatten(-3, -2).movedim(-1, -3)


class BestAmounts:
    """What an encoder finds, from the corrections and errors of all parts of its picture."""

    def __init__(self, channels: int, height: int, width: int):
        self._sides = height, width
        rows, columns = (-(-side // _BLOCK) for side in self._sides)
        # Of each block: the products of its corrections, and of these and the error.
        self._grams = torch.zeros(rows, columns, channels, CORRECTIONS, CORRECTIONS, dtype=torch.float64)
        self._moments = torch.zeros(rows, columns, channels, CORRECTIONS, dtype=torch.float64)
        self._pixels = torch.zeros(rows, columns, dtype=torch.float64)
        self._error = 0.0

    def add(self, corrections: Tensor, error: Tensor, area: Area) -> None:
        """corrections (1, CORRECTIONS, 3, h, w) and error (1, 3, h, w), in steps, of an area within the picture."""
        channels = self._grams.shape[2]
        for block in area.blocks(_BLOCK):
            at, here = (block.top // _BLOCK, block.left // _BLOCK), block.within(area)
            a = corrections[0, :, :channels][here].transpose(0, 1).flatten(2).double()
            e = error[0, :channels][here].flatten(1)[..., None].double()
            self._grams[at] += (a @ a.transpose(1, 2)).cpu()
            self._moments[at] += (a @ e)[..., 0].cpu()
            self._pixels[at] += block.positions()
            self._error += float(e.square().sum())

    def best(self, tables: list[Table], lagrangian: float) -> tuple[Amounts, float]:
        """The cheapest amounts, of which planes may keep the usual; and their cost: what they leave of the squared
        error, in squared steps, + lagrangian * bits."""
        best = Amounts.usual(self._grams.shape[2])
        lowest = self._change(best)
        for size in range(_LARGEST):
            numbers = self._of_size(size)
            for planes in itertools.product((False, True), repeat=numbers.shape[1]):
                amounts = Amounts(np.where(np.reshape(planes, (-1, 1, 1)), numbers, _USUAL), size)
                cost = self._change(amounts) + lagrangian * 8 * len(amounts.to_bytes(tables))
                if cost < lowest:
                    lowest, best = cost, amounts
            if max(self._sides) <= _BLOCK << size:
                break
        return best, self._error + lowest

    def _of_size(self, size: int) -> NDArray[np.integer]:
        grams, moments, pixels = (_merged(x, 1 << size) for x in (self._grams, self._moments, self._pixels))
        numbers = solve(grams, moments, pixels[..., None]).mul(_UNIT).round().permute(3, 2, 0, 1).numpy()
        return (numbers - _USUAL).clip(-_MOST, _MOST).astype(np.int32) + _USUAL

    def _change(self, amounts: Amounts) -> float:
        """Of the squared error."""
        side = 1 << amounts.size
        a = amounts.numbers.permute(2, 3, 1, 0).double() / _UNIT
        rows, columns = (torch.arange(count) // side for count in self._grams.shape[:2])
        a = a[rows][:, columns]
        return float((torch.einsum("...i,...ij,...j", a, self._grams, a) - 2 * (a * self._moments).sum(-1)).sum())


def _merged(x: Tensor, count: int) -> Tensor:
    """Sums of squares of count x count along the first two dimensions."""
    for dim in (0, 1):
        x = torch.stack([part.sum(dim) for part in x.split(count, dim)], dim)
    return x


def solve(gram: Tensor, moment: Tensor, pixels: Tensor) -> Tensor:
    """Least squares, from the products of all corrections (..., CORRECTIONS, CORRECTIONS) and of them and the error
    (..., CORRECTIONS), over so many pixels (...): the amounts (..., CORRECTIONS). Where they make hardly a difference,
    the usual ones."""
    eye = torch.eye(CORRECTIONS, dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(
        gram + pixels[..., None, None] * _RIDGE * eye, moment + pixels[..., None] * _RIDGE * eye[0]
    )


def least_squares(corrections: Tensor, error: Tensor) -> Tensor:
    """The best amounts (N, CORRECTIONS, 3, 1, 1) of corrections (N, CORRECTIONS, 3, H, W) for an error (N, 3, H, W)."""
    a, b = corrections.transpose(1, 2).flatten(3), error.flatten(2)[..., None]
    amounts = solve(a @ a.transpose(2, 3), (a @ b)[..., 0], a.new_full(a.shape[:2], a.shape[3]))
    return amounts.transpose(1, 2)[..., None, None]
