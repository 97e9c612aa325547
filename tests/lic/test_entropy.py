"""The entropy coder: every integer comes back, at about the bits that its table says."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lic.entropy import PRECISION, Decoder, Encoder, Table, integer_frequencies
from lic.errors import FormatError

FAMILY = [
    Table(-3, integer_frequencies(np.array(p))) for p in ([1, 5, 20, 70, 9, 3, 1, 0.1], [1, 1], [1e-12, 1, 1e-12])
]


@given(st.lists(st.tuples(st.integers(-(2**22), 2**22) | st.integers(-9, 9), st.integers(0, 2)), max_size=200))
def test_any_integers_come_back_whatever_their_tables(pairs):
    values = np.array([v for v, _ in pairs], np.int64)
    tables = np.array([t for _, t in pairs], np.int16)
    encoder = Encoder()
    encoder.encode(values, tables, FAMILY)
    encoder.encode_shared(values, FAMILY[0])
    decoder = Decoder(encoder.bytes())
    assert (decoder.decode(tables, FAMILY) == values).all()
    assert (decoder.decode_shared(len(values), FAMILY[0]) == values).all()


@given(st.lists(st.floats(0, 1e9), min_size=2, max_size=300).filter(lambda p: sum(p) > 0))
def test_frequencies_are_positive_and_sum_exactly(weights):
    frequencies = integer_frequencies(np.array(weights))
    assert frequencies.min() >= 1
    assert frequencies.sum() == 2**PRECISION


def test_the_size_is_the_information():
    rng = np.random.default_rng(0)
    table = FAMILY[0]
    entries = 1 + rng.choice(table.size, 50_000, p=table.frequencies[1:] / table.frequencies[1:].sum())
    encoder = Encoder()
    encoder.encode_shared(entries - 1 + table.first, table)
    information = table.bits()[entries].sum() / 8
    assert information <= len(encoder.bytes()) + 1 <= information * 1.001 + 10


def test_frequencies_of_each_symbol_s_own():
    rng = np.random.default_rng(0)
    frequencies = rng.integers(1, 2 ** rng.integers(1, 34, (2000, 18))).astype(float)
    values = rng.integers(-2, 20, 2000)
    encoder = Encoder()
    encoder.encode_each(values, frequencies)
    encoder.encode_each(values[:3], frequencies[:3])
    decoder = Decoder(encoder.bytes())
    assert np.array_equal(decoder.decode_each(frequencies), values)
    assert np.array_equal(decoder.decode_each(frequencies[:3]), values[:3])


def test_a_symbol_too_far_away_is_refused():
    with pytest.raises(ValueError, match="outside its table"):
        Encoder().encode_shared(np.array([2**24]), FAMILY[0])


@given(st.binary(max_size=400))
def test_arbitrary_bytes_decode_to_something_or_raise_a_format_error(data):
    with contextlib.suppress(FormatError):
        assert len(Decoder(data).decode(np.arange(300) % 3, FAMILY)) == 300


@pytest.mark.parametrize("frequencies", [[1], [0, 2**PRECISION], [1, 1], [[1, 2**PRECISION - 1]]])
def test_a_wrong_table_is_refused(frequencies):
    with pytest.raises(ValueError, match="frequencies"):
        Table(0, frequencies)


def test_data_that_was_cut_off_gives_what_is_sure_and_then_an_error():
    values = np.random.default_rng(0).integers(-3, 4, (40, 30))
    encoder = Encoder()
    for row in values:
        encoder.encode_shared(row, FAMILY[0])
    data = encoder.bytes()
    for length in range(0, len(data), 3):
        decoder, rows = Decoder(data[:length], incomplete=True), 0
        with contextlib.suppress(FormatError):
            for row in values:
                assert (decoder.decode_shared(30, FAMILY[0]) == row).all()
                rows += 1
        assert rows > 40 * length / len(data) - 3


def test_frequencies_come_back_whatever_their_order_in_memory():
    rng = np.random.default_rng(0)
    frequencies = rng.integers(1, 1000, (50, 9)).astype(float)
    values = rng.integers(0, 8, 50)
    encoder = Encoder()
    encoder.encode_each(values, np.asfortranarray(frequencies))
    assert np.array_equal(Decoder(encoder.bytes()).decode_each(frequencies), values)


def test_a_stream_that_ended_long_ago_is_refused():
    """Zeros, which a decoder supplies, are escapes: each takes time."""
    table = Table(0, integer_frequencies(np.ones(4)))
    with pytest.raises(FormatError, match="too early"):
        Decoder(b"").decode_shared(10**6, table)
