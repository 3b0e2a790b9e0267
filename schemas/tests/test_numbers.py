"""The table of number formats against the standards it is taken from."""

import pytest

from gs_schemas import NUMBER_FORMATS

BITS = range(2, 9)


def test_every_format_of_the_field_is_there():
    integers = {f"{sign}int{bits}" for sign in ("", "u") for bits in BITS}
    floats = {"fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1"}
    assert set(NUMBER_FORMATS) == integers | floats | {"mx6", "mx9", "bfp16"}
    assert all(name == row.name for name, row in NUMBER_FORMATS.items())


@pytest.mark.parametrize("bits", BITS)
def test_integers_are_twos_complement(bits):
    signed, unsigned = NUMBER_FORMATS[f"int{bits}"], NUMBER_FORMATS[f"uint{bits}"]
    assert (signed.kind, signed.bits, signed.minimum, signed.maximum) == (
        "int",
        bits,
        -(2**bits) // 2,
        2**bits // 2 - 1,
    )
    assert (unsigned.kind, unsigned.bits, unsigned.minimum, unsigned.maximum) == ("uint", bits, 0, 2**bits - 1)
    assert signed.is_integer
    assert unsigned.is_integer


def test_int4_is_what_everybody_knows():
    assert (NUMBER_FORMATS["int4"].minimum, NUMBER_FORMATS["int4"].maximum) == (-8, 7)


@pytest.mark.parametrize(
    ("name", "maximum", "exponent", "mantissa", "top_exponent", "top_mantissa"),
    [
        # OFP8: e4m3 has no infinity, and only the mantissa 111 of its top exponent is NaN.
        ("fp8_e4m3", 448, 4, 3, 15 - 7, 1.75),
        # OFP8: e5m2 keeps IEEE's infinity and NaN, so the exponent below is the top one.
        ("fp8_e5m2", 57344, 5, 2, 30 - 15, 1.75),
        # OCP MX: these have neither infinity nor NaN.
        ("fp6_e2m3", 7.5, 2, 3, 3 - 1, 1.875),
        ("fp6_e3m2", 28, 3, 2, 7 - 3, 1.75),
        ("fp4_e2m1", 6, 2, 1, 3 - 1, 1.5),
    ],
)
def test_floats_reach_as_far_as_their_fields_say(name, maximum, exponent, mantissa, top_exponent, top_mantissa):
    row = NUMBER_FORMATS[name]
    assert row.maximum == -row.minimum == maximum == 2**top_exponent * top_mantissa
    assert (row.exponent_bits, row.mantissa_bits, row.bits) == (exponent, mantissa, 1 + exponent + mantissa)
    assert (row.kind, row.is_integer) == ("float", False)


@pytest.mark.parametrize(
    ("name", "bits", "magnitude", "block_size", "sub_block_size", "average_bits"),
    [("mx6", 5, 15, 16, 2, 6), ("mx9", 8, 127, 16, 2, 9), ("bfp16", 8, 127, 8, 1, 9)],
)
def test_shared_exponents(name, bits, magnitude, block_size, sub_block_size, average_bits):
    """What a number costs is its code, its part of the exponent, and its part of a one-bit shift: that is the name."""
    row = NUMBER_FORMATS[name]
    assert (row.kind, row.bits, row.maximum, row.minimum) == ("shared_exponent", bits, magnitude, -magnitude)
    assert magnitude == 2 ** (bits - 1) - 1
    assert (row.block_size, row.sub_block_size, row.exponent_bits) == (block_size, sub_block_size, 8)
    shift = 1 / sub_block_size if sub_block_size > 1 else 0
    assert bits + 8 / block_size + shift == average_bits
