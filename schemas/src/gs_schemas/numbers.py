"""Number formats: what a code can say, apart from its scale.

One table for everything a scheme may name. Sources: two's-complement integers; OCP 8-bit Floating Point
(OFP8 1.0) for ``fp8_*``; OCP Microscaling Formats (MX 1.0) for ``fp6_*``, ``fp4_e2m1`` and the ``e8m0`` scale;
"With Shared Microexponents" (ISCA 2023) for ``mx6`` and ``mx9``; AMD Quark 0.13 for ``bfp16`` (blocks of eight).
The compound names of the field are built from these rows by ``QuantizationArgs``: MXFP4 is ``fp4_e2m1`` in
groups of 32 with an ``e8m0`` scale, NVFP4 is ``fp4_e2m1`` in groups of 16 with an ``fp8_e4m3`` scale under a
global one.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["int", "uint", "float", "shared_exponent"]


@dataclass(frozen=True)
class NumberFormat:
    """One row of the table.

    ``bits`` is the width of a code. ``minimum`` and ``maximum`` are the smallest and largest finite code values.
    Floats carry their field widths; formats whose codes share an exponent carry the ``block_size`` that shares
    it and the ``sub_block_size`` that shares a one-bit shift (1 where there is none).
    """

    name: str
    kind: Kind
    bits: int
    minimum: float
    maximum: float
    exponent_bits: int = 0
    mantissa_bits: int = 0
    block_size: int = 0
    sub_block_size: int = 1

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")


def _integers() -> list[NumberFormat]:
    signed = [NumberFormat(f"int{b}", "int", b, -(2 ** (b - 1)), 2 ** (b - 1) - 1) for b in range(2, 9)]
    unsigned = [NumberFormat(f"uint{b}", "uint", b, 0, 2**b - 1) for b in range(2, 9)]
    return signed + unsigned


def _float(name: str, exponent_bits: int, mantissa_bits: int, maximum: float) -> NumberFormat:
    return NumberFormat(
        name, "float", 1 + exponent_bits + mantissa_bits, -maximum, maximum, exponent_bits, mantissa_bits
    )


def _shared(name: str, bits: int, magnitude: int, block_size: int, sub_block_size: int = 1) -> NumberFormat:
    return NumberFormat(
        name,
        "shared_exponent",
        bits,
        -magnitude,
        magnitude,
        exponent_bits=8,
        block_size=block_size,
        sub_block_size=sub_block_size,
    )


NUMBER_FORMATS: dict[str, NumberFormat] = {
    row.name: row
    for row in (
        *_integers(),
        _float("fp8_e4m3", 4, 3, 448.0),
        _float("fp8_e5m2", 5, 2, 57344.0),
        _float("fp6_e2m3", 2, 3, 7.5),
        _float("fp6_e3m2", 3, 2, 28.0),
        _float("fp4_e2m1", 2, 1, 6.0),
        _shared("mx6", 5, 15, block_size=16, sub_block_size=2),
        _shared("mx9", 8, 127, block_size=16, sub_block_size=2),
        _shared("bfp16", 8, 127, block_size=8),
    )
}

ScaleFormat = Literal["model", "float32", "float16", "bfloat16", "e8m0", "fp8_e4m3"]
"""How a scale is stored. ``model`` is the dtype of the weight that was quantized."""
