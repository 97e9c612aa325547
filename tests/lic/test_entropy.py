"""The entropy coder: every integer comes back, at about the bits that its table says."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lic.entropy import PRECISION, Decoder, Encoder, SparseTable, Table, integer_frequencies
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


@given(
    st.integers(0, 5000),
    st.integers(1, 22).map(lambda k: 2.0**-k),  # the chance that the table gives to others than zero
    st.sampled_from([0, 1e-4, 1e-2, 0.5, 1]),  # and how many there are
    st.integers(0, 2**32 - 1),
)
def test_sparse_integers_come_back_and_cost_what_their_table_says(count, chance, others, seed):
    frequencies = integer_frequencies(np.array([0.01, 0.2, 0.3, 1 / chance, 0.3, 0.1]))
    plain, sparse = Table(-2, frequencies), SparseTable(-2, frequencies)
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(count) < others, rng.integers(-9, 10, count), 0)
    encoders = Encoder(), Encoder()
    for encoder, table in zip(encoders, (plain, sparse), strict=True):
        encoder.encode_shared(values, table)
    assert np.array_equal(Decoder(encoders[1].bytes()).decode_shared(count, sparse), values)
    sizes = [len(encoder.bytes()) for encoder in encoders]
    assert sizes[1] <= sizes[0] * 1.01 + 8


def test_sparse_integers_are_laid_out_as_the_format_says():
    """1100 of them, the frequency of zero 2^24 (1 - 2^-9): blocks of 2^5, 34 of them, and a rest of 12."""
    frequencies = np.array([2**10, 2**14, 2**24 - 2**15, 2**14 - 2**10])  # of the escape, -1, 0, 1
    values = np.zeros(1100, np.int64)
    values[[70, 90, 1000, 1095]] = 1, -1, -1, 1  # in block 2, twice, in block 31, and in the rest
    encoder, expected = Encoder(), Encoder()
    encoder.encode_shared(values, SparseTable(-1, frequencies))
    chance = int(frequencies[2])
    for _ in range(5):
        chance = chance**2 >> 24
    others = integer_frequencies(np.array([2**10, 2**14, 1, 2**14 - 2**10]))
    flags = np.tile([chance, 2**24 - chance], (34, 1)).astype(float)
    expected.entries(np.isin(np.arange(34), (2, 31)).astype(int), flags)
    expected.uniform([70 - 64, 1000 - 992], 32)
    expected.encode_shared(np.array([1, -1]), Table(-1, others))
    rest = np.concatenate([values[71:96], values[1001:1024], values[1088:]])
    expected.encode_shared(rest, Table(-1, frequencies))
    assert encoder.bytes() == expected.bytes()


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_are_no_trouble_for_sparse_tables(data, incomplete):
    table = SparseTable(-2, integer_frequencies(np.array([1, 1, 1, 999, 1])))
    with contextlib.suppress(FormatError):
        assert len(Decoder(data, incomplete).decode_shared(2500, table)) == 2500


def test_sparse_data_that_was_cut_off_gives_what_is_sure_and_then_an_error():
    table = SparseTable(-2, integer_frequencies(np.array([1, 1, 1, 999, 1])))
    values = (np.random.default_rng(0).random((20, 2000)) < 0.01).astype(int)
    encoder = Encoder()
    for row in values:
        encoder.encode_shared(row, table)
    decoder = Decoder(encoder.bytes()[: len(encoder.bytes()) // 2], incomplete=True)
    done = 0
    with contextlib.suppress(FormatError):
        for row in values:
            assert np.array_equal(decoder.decode_shared(2000, table), row)
            done += 1
    assert 8 <= done <= 10


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
