"""The result of quantizing one weight: no packing, no device."""

from dataclasses import dataclass

from gs_core.arrays import Array
from gs_schemas import QuantizationArgs


@dataclass(frozen=True)
class QuantizedTensor:
    """Codes and what turns them back: ``(codes - zero_point) * scale``.

    codes: ``(out_features, in_features)``, int8 (signed formats) or uint8 (unsigned ones).
    scale: float in the dtype that will be stored; ``(1, 1)`` per tensor, ``(out, 1)`` per channel,
        ``(out, groups)`` per group, ``(out / rows, in / columns)`` per block.
    zero_point: codes' dtype, the scale's shape; ``None`` when symmetric.
    group_index: int32 ``(in_features,)``, the group of each input feature where groups are not neighbours
        (activation order without static groups); ``None`` otherwise.
    """

    codes: Array
    scale: Array
    zero_point: Array | None
    args: QuantizationArgs
    group_index: Array | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.codes.shape[0]), int(self.codes.shape[1])
