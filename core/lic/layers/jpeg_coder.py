"""A JPEG file's quantised coefficients as bytes: what a lossless file holds of a picture that was decoded from one.

Of each component, its steps, and its DC, coded as a picture of its own; then all other coefficients in one range coder,
as lic.layers.dct_prior predicts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from lic.codec import PlaneShape
from lic.container import Reader, write_varint
from lic.entropy import Decoder, Encoder, Table
from lic.errors import FormatError
from lic.layers import dct_prior
from lic.layers.dct_prior import DctPrior, Pass
from lic.layers.jpeg import COUNT, REACH, TRANSPOSED, TURNS, USUAL, Component, Jpeg

_SAMPLINGS = (1, 1), (1, 2), (2, 1), (2, 2)  # of chroma, by number; one more for luma alone
_KINDS = 8  # of samplings, at most
NUMBERS = _KINDS * TURNS
_DC_DEPTH = 16
_LONGEST = 2**40  # bytes of a DC picture

EncodeDc = Callable[[Tensor, PlaneShape], bytes]
DecodeDc = Callable[[bytes, PlaneShape], Tensor]


def number(jpeg: Jpeg) -> int:
    """0..NUMBERS - 1: of its sampling, and how it was turned."""
    sampling = _SAMPLINGS.index(jpeg.sampling) if len(jpeg.components) > 1 else len(_SAMPLINGS)
    return sampling + _KINDS * jpeg.turn


def encode(jpeg: Jpeg, priors: Sequence[DctPrior] | nn.ModuleList, tables: list[Table], encode_dc: EncodeDc) -> bytes:
    """encode_dc: of a picture (1, h, w) int32."""
    out, encoder = [], Encoder()
    for component in jpeg.components:
        out.append(_table_bytes(component.table.cpu()))
        dc = component.coefficients[:1].cpu()
        coded = encode_dc(dc + (1 << _DC_DEPTH - 1), _dc_shape(*dc.shape[1:]))
        out += [write_varint(len(coded)), coded]
    walk = _Walk(priors)
    for component in jpeg.components:

        def code(this: Pass, mean: Tensor, log_scale: Tensor, coefficients: Tensor = component.coefficients) -> Tensor:
            symbols = this.take(coefficients[None, this.group])
            table, nearest, sign = this.tables(mean, log_scale)
            encoder.encode((sign * (symbols - nearest)).cpu().numpy(), table.cpu().numpy(), tables)
            return this.put(symbols, mean.shape)

        walk.component(component.coefficients[:1], component.table, code)
    return b"".join([*out, encoder.bytes()])


def decode(
    reader: Reader,
    shape: PlaneShape,
    which: int,
    priors: Sequence[DctPrior] | nn.ModuleList,
    tables: list[Table],
    decode_dc: DecodeDc,
    device: torch.device,
    truncated: bool,
) -> Jpeg:
    """The inverse, from a reader of all the bytes, for the `number` that it is. truncated: what is cut off is zeros.
    Raises FormatError."""
    turn, kind = divmod(which, _KINDS)
    sampling, count = (_SAMPLINGS[kind], 3) if kind < len(_SAMPLINGS) else ((1, 1), 1)
    if kind > len(_SAMPLINGS) or count > shape.channels or shape.bit_depth != 8:
        raise FormatError("the coded picture's header is damaged")
    height, width = (shape.width, shape.height) if turn & TRANSPOSED else (shape.height, shape.width)
    steps, pictures = [], []
    for rows, columns in [(1, 1), sampling, sampling][:count]:
        dc_shape = _dc_shape(-(-height // (8 * rows)), -(-width // (8 * columns)))
        dc = torch.zeros(1, dc_shape.height, dc_shape.width, dtype=torch.int32)
        table = torch.zeros(COUNT, dtype=torch.int32)
        try:
            table = _read_table(reader)
            length = reader.varint(_LONGEST)
            coded = reader.file.read(length) if truncated else reader.take(length)
            dc = decode_dc(coded, dc_shape) - (1 << _DC_DEPTH - 1)
        except FormatError:
            if not truncated:
                raise
        steps.append(table.to(device))
        pictures.append(dc.to(device).clamp(-REACH, REACH))
    decoder: Decoder | None = Decoder(reader.file.read(), incomplete=truncated)

    def code(this: Pass, mean: Tensor, log_scale: Tensor) -> Tensor:
        nonlocal decoder
        table, nearest, sign = this.tables(mean, log_scale)
        try:
            if decoder:
                symbols = torch.from_numpy(decoder.decode(table.cpu().numpy(), tables)).to(device)
                return this.put((sign * symbols + nearest).clamp(-REACH, REACH), mean.shape)
        except FormatError:
            if not truncated:
                raise
            decoder = None
        return torch.zeros_like(mean, dtype=torch.int32)

    walk = _Walk(priors)
    pairs = zip(steps, pictures, strict=True)
    return Jpeg([Component(walk.component(dc, table, code), table) for table, dc in pairs], sampling, turn)


class _Walk:
    """Goes through the components of a file, in their order."""

    def __init__(self, priors: Sequence[DctPrior] | nn.ModuleList):
        self._priors = priors
        self._amounts: list[Tensor] = []

    def component(self, dc: Tensor, table: Tensor, code: dct_prior.Code) -> Tensor:
        """Code the next one: dc (1, h, w) int32, its steps (64,) -> (64, h, w) int32."""
        prior = cast(DctPrior, self._priors[min(len(self._amounts), len(self._priors) - 1)])
        others = dct_prior.beside(self._amounts, dc[None])
        coefficients = prior(dc[None], table[None], others, code)
        self._amounts.append(dct_prior.amounts(coefficients, table[None]))
        return coefficients[0]


def _dc_shape(height: int, width: int) -> PlaneShape:
    return PlaneShape(1, height, width, _DC_DEPTH)


def _table_bytes(table: Tensor) -> bytes:
    """Which of libjpeg's it is, and which of its steps are used, a bit each; or 0, and the steps themselves."""
    used = table > 0
    same = (table == USUAL)[:, used].all(1).nonzero()
    if len(same):
        return bytes([1 + int(same[0])]) + np.packbits(used.numpy()).tobytes()
    return bytes([0, *table.tolist()])


def _read_table(reader: Reader) -> Tensor:
    which = reader.take(1)[0]
    if not which:
        return torch.tensor(list(reader.take(COUNT)), dtype=torch.int32)
    if which > len(USUAL):
        raise FormatError("the coded picture's quantisation table is damaged")
    used = np.unpackbits(np.frombuffer(reader.take(COUNT // 8), np.uint8)).astype(np.int32)
    return USUAL[which - 1] * torch.from_numpy(used)
