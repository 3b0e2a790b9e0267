"""Cached keys and values: ``(tokens, heads * size)``, head by head, quantized with scales fixed beforehand or found
for each token as it is cached."""

from gs_core.arrays import Array, astype, device, namespace
from gs_core.numerics import groups
from gs_core.numerics.integer import rounded, scale_from_range
from gs_core.numerics.mse import mse_fraction
from gs_core.numerics.observers import minmax
from gs_schemas import QuantizationArgs


def cache_params(
    low: Array, high: Array, sample: Array | None, heads: int, args: QuantizationArgs, dtype: str
) -> tuple[Array, Array | None]:
    """Scale and zero point of a static cache by ``args.observer``: one element, or one per head or channel.

    low, high: the range of each channel, ``(features,)``. sample: some of what is cached, ``(tokens, features)``, in
    which ``mse``, and nothing else, looks for the fraction of the full range that suits best. The scale is in
    ``dtype``.
    """
    xp = namespace(low)
    shape = _parts(int(low.shape[0]), heads, args)
    low, high = xp.min(xp.reshape(low, shape), axis=1), xp.max(xp.reshape(high, shape), axis=1)
    if args.observer == "mse":
        assert sample is not None
        values = xp.reshape(xp.permute_dims(sample, (1, 0)), (shape[0], -1))
        ends = xp.stack([low, high], axis=1)
        values = xp.expand_dims(xp.concat([values, ends], axis=1), axis=1)
        fraction = mse_fraction(values, args, dtype)[:, 0]
        low, high = low * fraction, high * fraction
    return scale_from_range(low, high, args, dtype)


def fake_quantize_cache(
    x: Array, heads: int, args: QuantizationArgs, scale: Array | None = None, zero_point: Array | None = None
) -> Array:
    """``x`` ``(tokens, features)`` as attention reads it back from a quantized cache, same shape and dtype.

    Static args need what ``cache_params`` gives.
    """
    xp = namespace(x)
    features = x.shape[1]
    if args.dynamic:
        width = {"token": features, "head": features // heads}.get(args.granularity, args.group_size or features)
        parts, size = features // width, width
    elif scale is None:
        raise ValueError("a static cache needs a scale")
    else:
        parts, size = _parts(features, heads, args)
        # What was read from a file is NumPy's, whatever ``x`` is and wherever it lies.
        scale = xp.reshape(xp.asarray(astype(scale, "float32"), device=device(x)), (1, parts, 1))
        if zero_point is not None:
            zero_point = xp.reshape(xp.asarray(astype(zero_point, "float32"), device=device(x)), (1, parts, 1))
    out = xp.empty_like(x)
    for rows, _ in groups.slices(x):
        values = xp.reshape(astype(x[rows, :], "float32"), (-1, parts, size))
        if args.dynamic:
            found, zero_point = scale_from_range(*minmax(values), args, "float32")
            scale = xp.expand_dims(found, axis=-1)
            zero_point = None if zero_point is None else xp.expand_dims(zero_point, axis=-1)
        values = rounded(values, scale, zero_point, args)
        out[rows, :] = xp.astype(xp.reshape(values, (-1, features)), x.dtype)
    return out


def cache_objection(features: int, heads: int, args: QuantizationArgs) -> str | None:
    """Why what is cached cannot have this granularity, or ``None``."""
    size = features // heads
    if args.granularity == "group" and args.group_size and size % args.group_size:
        return f"group_size {args.group_size} does not divide a head of {size} channels"
    return None


def _parts(features: int, heads: int, args: QuantizationArgs) -> tuple[int, int]:
    """How many scales a static cache has, and how many channels each serves."""
    parts = {"tensor": 1, "head": heads, "channel": features}[args.granularity]
    return parts, features // parts
