"""What is learned of one layer: an offset for every weight before it is rounded, and the range of every scale."""

import torch

from gs_core import Layer, QuantizedTensor, numerics
from gs_core.arrays import astype

LARGEST_OFFSET = 0.5
"""In steps of the scale: an offset chooses between the two codes around a weight."""
SIGNED_BITS = 4
"""Symmetric scales of codes this narrow may be negative."""
FASTEST = 4.0
"""How far the offset of a small feature moves, relative to that of a usual one."""
RANGE = (0.05, 1.2)
"""How much of its full range a scale may keep."""


class Rounding:
    """``scale * (clip(round(w / scale + offset) + zero_point) - zero_point)``, where scale and zero point cover
    ``[low * keep_low, high * keep_high]`` of each group.

    Gradients are taken by hand: rounding passes an offset's straight through unless the code is clipped, and a
    scale's is summed over its group. No graph of the weights is built.

    importance: float32 ``(in,)``, how much an error in each input feature matters; None: all the same. Scales start
    at the clipping that costs the least by it, and offsets move by as much less as a feature is larger: a signed step
    is as long in all of them, and in a feature of huge activations would undo what all others have learned. start:
    codes and scales to start from instead.
    """

    def __init__(self, layer: Layer, importance: torch.Tensor | None, start: QuantizedTensor | None = None):
        self.name, self.args, self._shape = layer.name, layer.args, layer.shape
        self._dtype = numerics.scale_dtype(layer.args, layer.dtype)
        values = numerics.split(layer.weight(), self.args)
        # Groups are turned so that their scale is positive, and turned back with the scale.
        self.sign = self._wider_below(values) if start is None else start.scale.float().sign()
        self._values = values * self.sign[..., None]
        # Rows to work on at a time, so that what an expression leaves behind stays in the cache.
        self._slices = [rows for rows, _ in numerics.slices(self._values.flatten(1))]
        self._first: torch.Tensor | None = None  # the offsets it starts from, where they are not zero
        if start is None:
            low, high = numerics.minmax(self._values)
            # An asymmetric range always holds zero.
            self._low, self._high = (low, high) if self.args.symmetric else (low.clamp(max=0), high.clamp(min=0))
            self.keep_low = self._best_fractions(importance)
            self.offset = torch.zeros_like(self._values)
        else:
            self._low, self._high = _covered(start)
            self.keep_low = torch.ones_like(self._low)
            self.offset = self._offsets_to(start)
            self._first = self.offset.clone()
        self.keep_high = self.keep_low.clone()
        self._rounded = torch.empty_like(self._values)
        self._pace = None if importance is None else numerics.split(_pace(importance).expand(self._shape), self.args)
        self.refresh()

    def _offsets_to(self, start: QuantizedTensor) -> torch.Tensor:
        """What puts every weight right on its code."""
        zero_point = 0.0 if start.zero_point is None else start.zero_point.float()[..., None]
        codes = numerics.split(start.codes.float(), self.args) - zero_point
        return codes - self._values / start.scale.float().abs()[..., None]

    def _wider_below(self, values: torch.Tensor) -> torch.Tensor:
        """-1 for groups whose scale shall be negative, ``(rows, groups)``: narrow symmetric codes reach a step further
        below zero than above it, and a sign gives that step to the side that needs it."""
        low, high = numerics.minmax(values)
        worthwhile = self.args.symmetric and self.args.number.kind == "int" and self.args.number.bits <= SIGNED_BITS
        return torch.where((high > -low) & worthwhile, -1.0, 1.0)

    def _best_fractions(self, importance: torch.Tensor | None) -> torch.Tensor:
        cost = None if importance is None else numerics.split(importance.expand(self._shape), self.args)
        found = [
            numerics.mse_fraction(self._values[rows], self.args, self._dtype, None if cost is None else cost[rows])
            for rows in self._slices
        ]
        return torch.cat(found)

    # --- forwards --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Compute ``weight``, float32 ``(out, in)``, a leaf that collects a gradient. Its memory is used again by the
        next call."""
        low, high = self._low * self.keep_low, self._high * self.keep_high
        self.scale, self.zero_point = numerics.scale_from_range(low, high, self.args, self._dtype)
        for rows in self._slices:
            codes, _ = self._unclipped(rows)
            scale, zero_point = self._grid(rows)
            codes.clamp_(self.args.number.minimum, self.args.number.maximum)
            if zero_point is not None:
                codes -= zero_point
            torch.mul(codes, scale * self.sign[rows, :, None], out=self._rounded[rows])
        self.weight = numerics.join(self._rounded, self._shape, self.args).requires_grad_()

    def _grid(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        zero_point = None if self.zero_point is None else self.zero_point[rows, :, None]
        return self.scale[rows, :, None].float(), zero_point

    def _unclipped(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes before they are clipped to the number's range, and the weights in steps of their scale."""
        scale, zero_point = self._grid(rows)
        steps = self._values[rows] / scale
        codes = (steps + self.offset[rows]).round_()
        return codes if zero_point is None else codes.add_(zero_point), steps

    def tensor(self) -> QuantizedTensor:
        """The layer as it is rounded now: codes and scales are those that ``weight`` was computed with."""
        dtype, limits = numerics.code_dtype(self.args), (self.args.number.minimum, self.args.number.maximum)
        codes = torch.cat([astype(self._unclipped(rows)[0].clamp_(*limits), dtype) for rows in self._slices])
        scale = self.scale * self.sign.to(self.scale.dtype)
        zero_point = None if self.zero_point is None else astype(self.zero_point, dtype)
        return QuantizedTensor(numerics.join(codes, self._shape, self.args), scale, zero_point, self.args)

    # --- backwards -------------------------------------------------------------------------------------------

    def update(self, step: float) -> None:
        """One step of signed gradient descent by the gradient that ``weight`` has collected; without one, none.

        step: how far the offsets of a usual feature move, in steps of their scale. A range moves as far as that at its
        outermost code: a change of a scale by itself would shift large codes by more, the more codes there are.
        """
        if self.weight.grad is None:
            return
        gradient = numerics.split(self.weight.grad, self.args)
        to_scale, to_zero_point = torch.zeros_like(self._low), torch.zeros_like(self._low)
        for rows in self._slices:
            codes, steps = self._unclipped(rows)
            scale, zero_point = self._grid(rows)
            clipped = codes.clamp(self.args.number.minimum, self.args.number.maximum)
            # 1.0 where a code is not clipped. In float32, because products with booleans are eight times as slow.
            passed = torch.eq(codes, clipped, out=codes)
            turned = gradient[rows] * self.sign[rows, :, None]
            passed *= turned
            if zero_point is not None:
                clipped -= zero_point
                to_zero_point[rows] = (passed - turned).sum(-1) * scale[..., 0]
            turned *= clipped
            to_scale[rows] = turned.addcmul_(passed, steps, value=-1).sum(-1)
            self._move(rows, passed.sign_(), step)
        outermost = 2 * step / (self.args.number.maximum - self.args.number.minimum)
        for keep, slope in zip((self.keep_low, self.keep_high), self._to_range(to_scale, to_zero_point), strict=True):
            keep.sub_(outermost * slope.sign()).clamp_(*RANGE)

    def _move(self, rows: slice, sign: torch.Tensor, step: float) -> None:
        """Move offsets against the sign of their gradient, by at most ``LARGEST_OFFSET`` from the first."""
        offset = self.offset[rows]
        if self._pace is None:
            offset.sub_(sign, alpha=step)
        else:
            offset.addcmul_(sign, self._pace[rows], value=-step)
        if self._first is None:
            offset.clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
        else:
            offset.clamp_(self._first[rows] - LARGEST_OFFSET, self._first[rows] + LARGEST_OFFSET)

    def _to_range(self, to_scale: torch.Tensor, to_zero_point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From gradients of scale and zero point to those of ``keep_low`` and ``keep_high``."""
        codes = self.args.number.maximum - self.args.number.minimum
        low, high = self._low * self.keep_low, self._high * self.keep_high
        if self.args.symmetric:  # scale = 2 max(|low|, |high|) / codes
            slope, below = to_scale * 2 / codes, low.abs() > high.abs()
            return slope * self._low.abs() * below, slope * self._high.abs() * ~below
        # scale = (high - low) / codes, zero_point = minimum - low / scale
        scale = self.scale.float()
        slope = (to_scale + to_zero_point * low / scale**2) / codes
        return (-to_zero_point / scale - slope) * self._low, slope * self._high


def _pace(importance: torch.Tensor) -> torch.Tensor:
    """How far the offsets of each feature move, relative to a usual one's, ``(in,)``."""
    return (importance.median() / importance).sqrt().nan_to_num(nan=1.0).clamp(max=FASTEST)


def _covered(start: QuantizedTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that leads to these scales and zero points."""
    scale, number = start.scale.float().abs(), start.args.number
    if start.zero_point is None:
        half = scale * (number.maximum - number.minimum) / 2
        return -half, half
    zero_point = start.zero_point.float()
    return (number.minimum - zero_point) * scale, (number.maximum - zero_point) * scale
