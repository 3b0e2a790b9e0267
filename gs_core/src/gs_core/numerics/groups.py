"""What shares a scale, as a shape: every granularity becomes ``(rows, groups, elements)``.

A scale then always has the shape ``(rows, groups)``, and ranges, rounding and error are each written once.
"""

from collections.abc import Iterator

from gs_core.arrays import Array, device, namespace
from gs_schemas import QuantizationArgs

SLICE = 2**17
"""Elements to work on at a time on a processor. Intermediate results, half a MiB each, then stay in the cache, and the
allocator reuses their memory. Fresh memory for a whole layer costs several times the arithmetic."""


def slices(x: Array, height: int = 1) -> Iterator[tuple[slice, slice]]:
    """Rows of ``(rows, columns)`` in ranges of about ``SLICE`` elements, never splitting the ``height`` rows that
    share a scale; each with the rows of scales it needs."""
    rows, columns = x.shape
    step = max(1, SLICE // max(1, columns * height)) * height if str(device(x)) == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield slice(start, stop), slice(start // height, stop // height)


def panels(size: int, step: int) -> list[tuple[int, int]]:
    """Where ranges of ``step`` begin and end."""
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def height(rows: int, args: QuantizationArgs) -> int:
    """How many of a weight's ``rows`` share a scale."""
    if args.granularity == "block" and args.block_size:
        return args.block_size[0]
    return rows if args.granularity == "tensor" else 1


def split(x: Array, args: QuantizationArgs) -> Array:
    """``(out, in)`` as ``(rows, groups, elements)``. Raises ``ValueError`` when a group does not divide."""
    xp = namespace(x)
    rows, columns = x.shape
    match args.granularity:
        case "tensor":
            return xp.reshape(x, (1, 1, rows * columns))
        case "channel" | "token" | "head":
            return xp.reshape(x, (rows, 1, columns))
        case "group":
            _divides(columns, args.group_size or 0, "in_features", "group_size")
            return xp.reshape(x, (rows, columns // args.group_size, args.group_size))
        case "block":
            height, width = args.block_size or (0, 0)
            _divides(rows, height, "out_features", "block height")
            _divides(columns, width, "in_features", "block width")
            tiles = xp.reshape(x, (rows // height, height, columns // width, width))
            return xp.reshape(xp.permute_dims(tiles, (0, 2, 1, 3)), (rows // height, columns // width, height * width))


def join(groups: Array, shape: tuple[int, int], args: QuantizationArgs) -> Array:
    """The inverse of ``split``."""
    xp = namespace(groups)
    if args.granularity == "block":
        height, width = args.block_size or (0, 0)
        tiles = xp.reshape(groups, (shape[0] // height, shape[1] // width, height, width))
        groups = xp.permute_dims(tiles, (0, 2, 1, 3))
    return xp.reshape(groups, shape)


def objection(shape: tuple[int, int], args: QuantizationArgs) -> str | None:
    """Why a weight of this shape cannot have this granularity, or ``None``."""
    out_features, in_features = shape
    if args.granularity == "group" and args.group_size and in_features % args.group_size:
        return f"group_size {args.group_size} does not divide in_features {in_features}"
    if args.granularity == "block" and args.block_size:
        height, width = args.block_size
        if out_features % height or in_features % width:
            return f"block_size {args.block_size} does not divide the shape {shape}"
    return None


def _divides(size: int, part: int, what: str, name: str) -> None:
    if part <= 0 or size % part:
        raise ValueError(f"{name} {part} does not divide {what} {size}")
