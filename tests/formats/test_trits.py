"""The packed layouts against bytes worked out by hand, and there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.formats import trits


def only(length, *places):
    """All -1 but for +1 at `places`."""
    codes = np.full(length, -1, np.int8)
    codes[list(places)] = 1
    return codes


@pytest.mark.parametrize("place, byte, value", [(0, 0, 2 << 6), (33, 1, 2 << 4), (64, 0, 2 << 2), (127, 31, 2)])
def test_i2_s_keeps_weight_j_in_byte_j_mod_32_highest_bits_first(place, byte, value):
    packed = trits.pack_i2_s(only(128, place))
    assert packed[byte] == value and packed.sum() == value
    assert (trits.unpack_i2_s(packed) == only(128, place)).all()


@pytest.mark.parametrize("place, byte, value", [(0, 0, 2), (33, 1, 2 << 2), (95, 31, 2 << 4), (128 + 96, 32, 2 << 6)])
def test_tq2_0_keeps_weight_i_in_byte_i_mod_32_lowest_bits_first(place, byte, value):
    packed = trits.pack_tq2_0(only(256, place))
    assert packed[byte] == value and packed.sum() == value
    assert (trits.unpack_tq2_0(packed) == only(256, place)).all()


@pytest.mark.parametrize(
    "place, byte, trit", [(0, 0, 0), (33, 1, 1), (159, 31, 4), (160, 32, 0), (239, 47, 4), (240, 48, 0), (255, 51, 3)]
)
def test_tq1_0_keeps_five_trits_a_byte_as_a_fraction(place, byte, trit):
    packed = trits.pack_tq1_0(only(256, place)[None])
    expected = np.zeros(52, np.uint8)
    expected[byte] = -(-2 * 3 ** (4 - trit) * 256 // 243)  # ceil(0.0..2..0 in base 3, times 256)
    assert (packed[0] == expected).all()
    assert (trits.unpack_tq1_0(packed)[0] == only(256, place)).all()


def test_rows_keep_output_r_plus_i_quarters_in_bits_2i():
    codes = np.array([[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]], np.int8)
    packed = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)  # from transformers' docstring
    assert (trits.unpack_rows(packed) == codes).all()
    assert (trits.pack_rows(codes) == packed).all()


@pytest.mark.parametrize(
    "place, byte, trit", [(0, 0, 0), (17, 1, 1), (79, 15, 4), (80, 16, 0), (119, 23, 4), (120, 24, 0), (127, 25, 3)]
)
def test_ptq1_0_is_tq1_0_in_blocks_of_128(place, byte, trit):
    packed = trits.pack_ptq1_0(only(128, place)[None])
    expected = np.zeros(26, np.uint8)
    expected[byte] = -(-2 * 3 ** (4 - trit) * 256 // 243)
    assert (packed[0] == expected).all()
    assert (trits.unpack_ptq1_0(packed)[0] == only(128, place)).all()


@pytest.mark.parametrize("place, byte, value", [(0, 0, 1), (7, 0, 128), (8, 1, 1), (127, 15, 128)])
def test_q1_0_keeps_weight_j_in_bit_j_mod_8_of_byte_j_div_8(place, byte, value):
    packed = trits.pack_q1_0(only(128, place))
    assert packed[byte] == value and packed.sum() == value
    assert (trits.unpack_q1_0(packed) == only(128, place)).all()


@pytest.mark.parametrize("place, byte, value", [(0, 0, 2), (1, 0, 2 << 2), (3, 0, 2 << 6), (4, 1, 2), (63, 15, 2 << 6)])
def test_q2_0_keeps_weight_j_in_byte_j_div_4_lowest_bits_first(place, byte, value):
    packed = trits.pack_q2_0(only(64, place))
    assert packed[byte] == value and packed.sum() == value
    assert (trits.unpack_q2_0(packed) == only(64, place)).all()


@pytest.mark.parametrize("place, byte, value", [(0, 0, 2), (17, 1, 2 << 2), (47, 15, 2 << 4), (48, 0, 2 << 6)])
def test_iq2_bn_keeps_weight_j_in_byte_j_mod_16_lowest_bits_first(place, byte, value):
    packed = trits.pack_iq2_bn(only(64, place))
    assert packed[byte] == value and packed.sum() == value
    assert (trits.unpack_iq2_bn(packed) == only(64, place)).all()


@pytest.mark.parametrize(
    "place, byte, trit",
    [(0, 0, 0), (4, 0, 4), (5, 1, 0), (14, 2, 4), (15, 12, 0), (16, 3, 0), (31, 12, 1), (63, 12, 3)],
)
def test_iq1_bn_keeps_the_last_of_sixteen_in_the_thirteenth_byte(place, byte, trit):
    packed = trits.pack_iq1_bn(only(64, place)[None])
    expected = np.zeros(13, np.uint8)
    expected[byte] = -(-2 * 3 ** (4 - trit) * 256 // 243)
    assert (packed[0] == expected).all()
    assert (trits.unpack_iq1_bn(packed)[0] == only(64, place)).all()


@pytest.mark.parametrize(
    "row, column, byte, value", [(0, 0, 0, 2), (1, 0, 4, 2), (3, 2, 14, 2), (0, 4, 0, 2 << 2), (2, 31, 27, 2 << 6)]
)
@pytest.mark.parametrize("quadruple, block", [(0, 0), (1, 2)])
def test_iq2_bn_r4_interleaves_four_rows(row, column, byte, value, quadruple, block):
    codes = np.full((8, 192), -1, np.int8)
    codes[4 * quadruple + row, 64 * block + column] = 1
    packed = np.zeros((2, 192), np.uint8)
    packed[quadruple, 64 * block + byte] = value
    assert (trits.unpack_iq2_bn_r4(packed) == codes).all()


def test_what_q1_0_cannot_hold_is_refused():
    with pytest.raises(ParameterError, match="zeros"):
        trits.pack_q1_0(np.array([1, 0, -1, 1, 1, 1, 1, 1], np.int8))


@pytest.mark.parametrize("size", [128, 128 * 8192, 128 * 8192 + 128, 128 * 20000])
@pytest.mark.parametrize("layout", ["i2_s", "tq2_0", "q2_0", "iq2_bn"])
def test_two_bit_layouts_come_back_across_chunks(layout, size):
    codes = np.random.default_rng(size).integers(-1, 2, size).astype(np.int8)
    packed = getattr(trits, f"pack_{layout}")(codes)
    assert (getattr(trits, f"unpack_{layout}")(packed) == codes).all()


@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 2100))
def test_tq1_0_comes_back(seed, blocks):
    codes = np.random.default_rng(seed).integers(-1, 2, (blocks, 256)).astype(np.int8)
    assert (trits.unpack_tq1_0(trits.pack_tq1_0(codes)) == codes).all()


@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(1, 300))
def test_ptq1_0_and_iq1_bn_come_back(seed, blocks):
    codes = np.random.default_rng(seed).integers(-1, 2, (blocks, 128)).astype(np.int8)
    assert (trits.unpack_ptq1_0(trits.pack_ptq1_0(codes)) == codes).all()
    assert (trits.unpack_iq1_bn(trits.pack_iq1_bn(codes.reshape(-1, 64))) == codes.reshape(-1, 64)).all()


@given(seed=st.integers(0, 2**32 - 1), quarter=st.integers(1, 9), k=st.integers(1, 70))
def test_rows_come_back(seed, quarter, k):
    codes = np.random.default_rng(seed).integers(-1, 2, (4 * quarter, k)).astype(np.int8)
    assert (trits.unpack_rows(trits.pack_rows(codes)) == codes).all()


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
@pytest.mark.parametrize(
    "unpack",
    [
        trits.unpack_i2_s,
        trits.unpack_tq2_0,
        trits.unpack_iq2_bn,
        lambda x: trits.unpack_rows(x.reshape(-1, 7)),
        lambda x: trits.unpack_iq2_bn_r4(np.resize(x, (1, 64 * 4))[:, ::-1]),
    ],
)
def test_the_code_3_is_refused_wherever_it_is(unpack, shift):
    packed = np.full(32 * 7, 0b10101010, np.uint8)
    packed[-1] |= 3 << shift
    with pytest.raises(FormatError, match="code 3"):
        unpack(packed)


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_plus_two_in_q2_0_is_not_ternary(shift):
    packed = np.full(48, 0b10101010, np.uint8)
    packed[33] |= 3 << shift
    with pytest.raises(UnsupportedError, match="\\+2"):
        trits.unpack_q2_0(packed)
