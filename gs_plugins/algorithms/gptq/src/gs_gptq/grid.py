"""Scales and zero points as the solver uses them."""

from collections.abc import Sequence

from gs_core import Array, namespace, numerics
from gs_core.arrays import astype, dtype_name, transposed
from gs_schemas import QuantizationArgs


class Grid:
    """Scales and zero points, one row for each group, ``(groups, rows)`` float32.

    Every scale is one that ``dtype``, what it will be stored in, can say.
    """

    def __init__(self, scale: Array, zero_point: Array | None, args: QuantizationArgs):
        self.args, self.dtype = args, dtype_name(scale)
        self.code_dtype = numerics.code_dtype(args)
        self.scale = transposed(scale)
        self.zero_point = None if zero_point is None else transposed(zero_point)
        self._scales = namespace(self.scale).unstack(self.scale)
        self._zero_points = None if self.zero_point is None else namespace(self.scale).unstack(self.zero_point)

    def set(self, group: int, scale: Array, zero_point: Array | None) -> None:
        """Replace one group's, ``(rows, 1)`` each."""
        self.scale[group, :] = transposed(scale)[0, :]
        if self.zero_point is not None and zero_point is not None:
            self.zero_point[group, :] = transposed(zero_point)[0, :]

    def part(self, rows: Sequence[slice]) -> "Grid":
        """That of some rows, a copy; where all share one scale, the whole."""
        scale, zero_point = self.params()
        rows = [slice(None)] if scale.shape[0] == 1 else rows
        concat = namespace(scale).concat
        some = None if zero_point is None else concat([zero_point[piece, :] for piece in rows])
        return Grid(concat([scale[piece, :] for piece in rows]), some, self.args)

    def take(self, rows: Sequence[slice], part: "Grid") -> None:
        """Replace the scales of some rows. One that all share stays as it is."""
        if self.scale.shape[1] == 1:
            return
        start = 0
        for piece in rows:
            stop = start + len(range(self.scale.shape[1])[piece])
            self.scale[:, piece] = part.scale[:, start:stop]
            start = stop

    def round(self, x: Array, group: int) -> tuple[Array, Array]:
        """Codes of one feature ``(rows,)``, and what they stand for."""
        scale, zero_point = self._scales[group], self._zero_point(group)
        codes = numerics.encode(x, scale, zero_point, self.args)
        return codes, numerics.decode(codes, scale, zero_point)

    def nearest(self, steps: Array, group: int) -> Array:
        """Codes of one feature that is given in scales ``(rows,)``, which is used up."""
        return numerics.nearest_codes(steps, self._zero_point(group), self.args)

    def steps(self, codes: Array, group: int) -> Array:
        """How many scales each code ``(..., rows)`` stands for, float32; maybe in the memory of ``codes``."""
        steps, zero_point = astype(codes, "float32"), self._zero_point(group)
        return steps if zero_point is None else steps - zero_point

    def _zero_point(self, group: int) -> Array | None:
        return None if self._zero_points is None else self._zero_points[group]

    def storable(self, scale: Array) -> Array:
        """The nearest scales that can be stored."""
        return astype(astype(scale, self.dtype), "float32")

    def params(self) -> tuple[Array, Array | None]:
        """Scales and zero points as they are stored, ``(rows, groups)``."""
        xp = namespace(self.scale)
        scale = astype(xp.permute_dims(self.scale, (1, 0)), self.dtype)
        if self.zero_point is None:
            return scale, None
        return scale, astype(xp.permute_dims(self.zero_point, (1, 0)), self.code_dtype)
