"""How far arrays are from what they were, and whether they are numbers at all."""

from gs_core import numerics
from gs_core.arrays import Array, astype, namespace
from gs_core.errors import CalibrationError


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
    """Squared error of ``(..., features)`` relative to the squares of ``wanted``."""
    xp = namespace(wanted)
    wanted, got = (xp.reshape(x, (-1, x.shape[-1])) for x in (wanted, got))
    power = error = 0.0
    for rows, _ in numerics.slices(wanted):
        part = astype(wanted[rows, :], "float32")
        difference = astype(got[rows, :], "float32") - part
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
