"""Applying a transform to a block whose parameters can be written into: into the producer's, or online, and out of the
consumers'. What adapters share; an adapter says where the parameters are."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from gs_core.arrays import Array, astype, dtype_name, like, namespace
from gs_core.interfaces import Block, ChannelScale, FoldTransform, Transform
from gs_core.numerics import slices

Keep = Callable[[str], Array]
"""Returns a parameter that may be written into, after it has saved the previous value. The dtype is float32, or float64
while the block is verified (``Block.verifying``)."""
Change = Callable[[Array], Array]
"""``(rows, features)`` to the same shape."""


@dataclass(frozen=True)
class Norm:
    """Names of the parameters of a norm, and what it adds to its weight before it multiplies by it."""

    weight: str
    bias: str | None
    offset: float


class WritableBlock(Block):
    """A block that folds transforms into its parameters.

    norms: every norm that can be scaled, by the name that folds give it. changed: parameters that are no longer what
    the checkpoint holds.
    """

    norms: dict[str, Norm]
    changed: set[str]

    @abstractmethod
    def parameter(self, name: str) -> Array:
        """A parameter that may be written into: float32, or float64 while the block is verified."""

    def original(self, name: str) -> Callable[[], Array] | None:
        """Reads anew what a parameter holds, where the source still says that; ``None``: only a copy would."""
        return None

    @abstractmethod
    def stored_dtype(self, parameter: str) -> str:
        """The name of the dtype that a parameter is stored in."""

    @abstractmethod
    def producing(self, layer: str, keep: Keep) -> tuple[Array, Array | None]:
        """Of a layer the views of its weight ``(out, in)`` and of its bias ``(out,)``, where it has one."""

    @abstractmethod
    def consuming(self, site: str, keep: Keep) -> Iterator[tuple[Array, str | None]]:
        """Of everything that multiplies a site's tensor, layers or not, the view of its weight ``(out, in)``, and the
        name of its bias, where it has one."""

    @abstractmethod
    def stranger(self, site: str) -> str | None:
        """What multiplies a site's tensor too, and is none of its layers; ``None`` where nothing does."""

    def apply(self, transform: Transform) -> tuple[Transform, Callable[[], None]]:
        """See ``gs_core.Block.apply``.

        A norm's weight is rounded to the dtype it is stored in first, and the scale that this leaves is the one the
        consumers get, so that nothing is lost when the norm is written.
        """
        behind = [site for site in transform.sites if site in self.online]
        if behind:
            raise ValueError(
                f"{behind[0]} has a map that is computed at run time; what folds there must come before it"
            )
        kept, changed, online = Kept(self), set(self.changed), self.online

        def undo() -> None:
            kept.restore()
            self.changed, self.online = changed, online

        try:
            transform = _apply(self, transform, kept)
        except ValueError:
            undo()
            raise
        self.changed = changed | set(kept.before)
        return transform, undo


class Kept:
    """What the parameters that are written into were before: a ``Keep``. Copied where it cannot be read again."""

    def __init__(self, block: WritableBlock):
        self._block = block
        self.before: dict[str, Callable[[], Array]] = {}

    def __call__(self, name: str) -> Array:
        if name in self.before:
            return self._block.parameter(name)
        original, value = self._block.original(name), self._block.parameter(name)
        self.before[name] = original or _always(namespace(value).asarray(value, copy=True))
        return value

    def restore(self) -> None:
        for name, before in self.before.items():
            self._block.parameter(name)[...] = before()


def _always(value: Array) -> Callable[[], Array]:
    return lambda: value


def _apply(block: WritableBlock, transform: Transform, keep: Keep) -> Transform:
    if isinstance(transform, ChannelScale):
        return _scale(block, transform, keep)
    map = transform.map
    if isinstance(transform, FoldTransform):
        producer, head = transform.fold.producer, transform.fold.head
        if producer in block.norms or head % map.block:
            raise ValueError(f"{producer}: mixes channels in groups of {head}, not of {map.block}")
        change_outputs(block, producer, map.apply, keep)
    else:
        site = block.sites[transform.site]
        why = transform.objection(site)
        if why:
            raise ValueError(f"{transform.site}: {why}")
        # An engine sends the input of layers through a map, not that of other modules which share it.
        stranger = block.stranger(transform.site) if site.kind == "input" else None
        if stranger:
            raise ValueError(f"{stranger} shares the input and is no layer to be quantized")
        block.online = {**block.online, transform.site: map}
        if site.kind != "input":
            return transform
    change_inputs(block, transform.sites, map.inverse_transpose.apply, keep)
    return transform


def change_outputs(block: WritableBlock, layer: str, change: Change, keep: Keep) -> None:
    """Change the output channels of a layer, which are the features that ``change`` gets."""
    weight, bias = block.producing(layer, keep)
    weight[...] = change(weight.T).T
    if bias is not None:
        bias[...] = change(bias)


def change_inputs(block: WritableBlock, sites: Iterable[str], change: Change, keep: Keep) -> None:
    """Change the input features of every weight at these sites, a slice of rows at a time."""
    for site in sites:
        for weight, _ in block.consuming(site, keep):
            for rows, _ in slices(weight):
                weight[rows] = change(weight[rows])


def _scale(block: WritableBlock, transform: ChannelScale, keep: Keep) -> ChannelScale:
    fold, norm = transform.fold, block.norms.get(transform.fold.producer)
    if norm is not None:
        scale, shift = _scale_norm(block, norm, transform, keep)
    else:
        weight, bias = block.producing(fold.producer, keep)
        scale, shift = _given(transform, weight)
        weight /= scale[:, None]
        if bias is not None:
            bias[...] = (bias if shift is None else bias - shift) / scale
    if shift is not None:
        _make_up_for(block, fold.sites, fold.expand(shift), keep)
    expanded = fold.expand(scale)
    change_inputs(block, fold.sites, lambda weight: weight * expanded, keep)
    return ChannelScale(fold, scale, shift)


def _given(transform: ChannelScale, x: Array) -> tuple[Array, Array | None]:
    """The scale and the shift, in the library of ``x``."""
    return like(transform.scale, x), None if transform.shift is None else like(transform.shift, x)


def _scale_norm(block: WritableBlock, norm: Norm, transform: ChannelScale, keep: Keep) -> tuple[Array, Array | None]:
    """The scale and shift that are left once the norm is rounded to the dtype it is stored in."""
    weight, offset = keep(norm.weight), norm.offset
    scale, shift = _given(transform, weight)
    xp, wanted = namespace(weight), (weight + offset) / scale
    stored = _rounded(block, norm.weight, wanted - offset)
    usable = (stored + offset != 0) & (weight + offset != 0)
    divisor = xp.where(usable, stored + offset, xp.ones_like(stored))
    effective = xp.where(usable, (weight + offset) / divisor, scale)
    weight[...] = xp.where(usable, stored, wanted - offset)
    if norm.bias is not None:
        bias = keep(norm.bias)
        if shift is None:
            bias /= effective
        else:
            stored = _rounded(block, norm.bias, (bias - shift) / effective)
            shift = bias - stored * effective
            bias[...] = stored
    return effective, shift


def _rounded(block: WritableBlock, parameter: str, value: Array) -> Array:
    return astype(astype(value, block.stored_dtype(parameter)), dtype_name(value))


def _make_up_for(block: WritableBlock, sites: Iterable[str], shift: Array, keep: Keep) -> None:
    """Add to the biases at these sites what their weights make of ``shift`` ``(features,)``."""
    for site in sites:
        for weight, bias in block.consuming(site, keep):
            assert bias is not None, "the fold said so"
            change = keep(bias)
            change += weight @ shift
