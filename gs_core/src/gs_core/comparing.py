"""How far arrays are from what they were, and whether they are numbers at all."""

from gs_core import numerics
from gs_core.arrays import Array, astype, dtype_name, namespace
from gs_core.errors import CalibrationError

EQUIVALENCE_TOLERANCE = 1e-9
"""Largest difference of equivalent outputs in a channel, relative to its own magnitude, after the allowance for
rounding."""
ROUNDING_UNITS = 2**11
"""Allowance for rounding in each channel, in units of the dtype's epsilon times the magnitude of the largest channel.

2.4e-4 of the largest channel in float32, 4.5e-13 in float64.
"""


def check_finite(x: Array, what: str) -> None:
    """Raise ``CalibrationError`` when ``x`` holds NaN or infinity."""
    if not is_finite(x):
        raise CalibrationError(
            f"{what} is not finite. Either a weight of the source is damaged or the model overflows on this data"
        )


def is_finite(x: Array) -> bool:
    """Whether every element is a number. A sum is one only if all its terms are, and needs no mask of them."""
    xp = namespace(x)
    return bool(xp.isfinite(xp.sum(x))) or bool(xp.all(xp.isfinite(x)))


def relative_error(wanted: Array, got: Array) -> float:
    """Squared error of ``(..., features)`` relative to the squares of ``wanted``, in float64 if ``wanted`` is."""
    xp, dtype = namespace(wanted), "float64" if dtype_name(wanted) == "float64" else "float32"
    wanted, got = (xp.reshape(x, (-1, x.shape[-1])) for x in (wanted, got))
    power = error = 0.0
    for rows, _ in numerics.slices(wanted):
        part = astype(wanted[rows, :], dtype)
        difference = astype(got[rows, :], dtype) - part
        power += float(xp.sum(part * part))
        error += float(xp.sum(difference * difference))
    return error / power if power else 0.0


def channel_error(wanted: Array, got: Array) -> float:
    """Root-mean-square error of each channel relative to its own magnitude, averaged over channels.

    Relative to the whole, a few huge channels of the residual stream would hide an error in all the others.
    """
    xp = namespace(wanted)
    axes = tuple(range(wanted.ndim - 1))
    wanted, difference = astype(wanted, "float32"), astype(got, "float32") - astype(wanted, "float32")
    power = xp.mean(wanted * wanted, axis=axes)
    error = xp.mean(difference * difference, axis=axes)
    ratio = xp.where(power > 0, error / xp.where(power > 0, power, xp.ones_like(power)), xp.zeros_like(power))
    return float(xp.mean(xp.sqrt(ratio)))


def unexplained_change(expected: Array, actual: Array, part: float = 1.0) -> float:
    """Largest change of a channel beyond the allowance for rounding, relative to the channel's own magnitude.

    A channel is a feature (last axis). Its magnitude is its largest absolute value. A small channel of a residual
    stream may be computed as a difference of channels that are thousands of times larger. The allowance is therefore
    proportional to the largest channel (``ROUNDING_UNITS``).

    Args:
        expected: ``(..., features)``, float32 or float64. The allowance depends on its dtype.
        actual: same shape.
        part: fraction of the allowance that is used.

    Returns:
        0.0 if every difference is within the allowance; NaN if ``actual`` contains NaN.
    """
    xp = namespace(expected)
    features = expected.shape[-1]
    expected, actual = (
        xp.reshape(expected, (-1, features)),
        xp.reshape(astype(actual, dtype_name(expected)), (-1, features)),
    )
    magnitude = xp.max(xp.abs(expected), axis=0)
    allowed = part * ROUNDING_UNITS * float(xp.finfo(expected.dtype).eps) * xp.max(magnitude)
    excess = xp.max(xp.abs(actual - expected), axis=0) - allowed
    nonzero = xp.where(magnitude > 0, magnitude, xp.ones_like(magnitude) * float(xp.finfo(expected.dtype).tiny))
    return float(xp.max(xp.where(excess <= 0, xp.zeros_like(excess), excess / nonzero)))


def equivalent(expected: Array, actual: Array, part: float = 1.0) -> bool:
    """True if ``unexplained_change`` is at most ``part`` of ``EQUIVALENCE_TOLERANCE``; False for NaN."""
    return unexplained_change(expected, actual, part) <= part * EQUIVALENCE_TOLERANCE
