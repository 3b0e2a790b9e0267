"""One block of the toy: its weights, run, rewritten and handed back. Everything an adapter's block does, declared."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_core.arrays import Array, RawTensor, astype, from_raw, namespace, to_raw
from gs_core.interfaces import (
    Block,
    ChannelScale,
    Fold,
    FoldTransform,
    Layer,
    LayerInfo,
    OnSite,
    Site,
    Transform,
    through,
)
from gs_core.storage import Tensor
from gs_core.testing.toy_arithmetic import attention, rms_norm, silu, to_float32

if TYPE_CHECKING:
    from gs_core.testing.toy import ToyModel


class ToyLayer(Layer):
    """A weight among the block's weights."""

    def __init__(self, info: LayerInfo, block: "ToyBlock"):
        super().__init__(info)
        self._block = block

    def weight(self) -> Array:
        return self._block.model.asarray(self._block.read(f"{self.name}.weight").copy())

    def view(self) -> Array:
        return self._block.model.asarray(self._block.read(f"{self.name}.weight"))

    def set_weight(self, weight: Array) -> None:
        self._block.write(f"{self.name}.weight", to_float32(weight))


class ToyBlock(Block):
    """``weights`` holds float32 arrays by their names in the checkpoint. They are replaced, never written into,
    so that taking a change back is keeping the old ones."""

    def __init__(self, model: "ToyModel", index: int, loaded: bool):
        self.model, self.index, self.name = model, index, model.blocks[index]
        self.stored = {n: t for n, t in model.checkpoint.tensors.items() if n.startswith(f"{self.name}.")}
        self.weights = {name: model.read(name) for name in self.stored} if loaded else {}
        self.dtype = "float32"
        self.changed = frozenset(self.stored if model.rotation is not None else ())
        infos = [info for info in model.layers if info.block == index]
        self.layers: dict[str, Layer] = {info.name: ToyLayer(info, self) for info in infos}
        together = {site: [i for i in infos if i.site == site] for site in dict.fromkeys(i.site for i in infos)}
        inputs = [Site(s, fed[0].shape[1], tuple(i.name for i in fed)) for s, fed in together.items()]
        # Keys and values come of the first site, and before the second.
        self.sites = {site.name: site for site in [inputs[0], *model.caches[index].sites, *inputs[1:]]}

    def read(self, name: str) -> np.ndarray:
        return self.weights[name] if name in self.weights else self.model.read(name)

    def write(self, name: str, value: np.ndarray) -> None:
        self.weights = self.weights | {name: value}
        self.changed |= {name}

    # --- running ---------------------------------------------------------------------------------------------

    def run(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        on_site: OnSite | None = None,
        weights: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Everything is computed in the library of ``asarray``: with torch's, autograd follows."""
        x = self._compute(self._arriving(tokens, previous), on_site, weights or {})
        return {"hidden": astype(x, self.dtype)}

    @contextmanager
    def verifying(self) -> Iterator[None]:
        kept = self.weights
        self.weights, self.dtype = {name: value.astype(np.float64) for name, value in kept.items()}, "float64"
        try:
            yield
        finally:
            self.weights, self.dtype = kept, "float32"

    def backward(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        gradient: Mapping[str, RawTensor],
        on_gradient: Callable[[str, Array], None] = lambda layer, gradient: None,
    ) -> dict[str, Array]:
        x: Any = self._arriving(tokens, previous).requires_grad_()

        def listen(name: str, product: Any) -> None:
            product.register_hook(lambda g: on_gradient(name, astype(g.reshape(-1, g.shape[-1]), "float32")))

        hidden: Any = self._compute(x, None, {}, listen)
        hidden.backward(self.model.wide(from_raw(gradient["hidden"])))
        return {} if previous is None else {"hidden": astype(x.grad, "float32")}

    def _arriving(self, tokens: np.ndarray, previous: Mapping[str, RawTensor] | None) -> Array:
        x = self.model.read("embed.weight")[tokens] if previous is None else from_raw(previous["hidden"])
        return self.model.wide(x)

    def _compute(
        self,
        x: Array,
        on_site: OnSite | None,
        given: Mapping[str, Array],
        on_product: Callable[[str, Array], None] = lambda layer, product: None,
    ) -> Array:
        """Computes in float64 between sites, and rounds to float32 at sites (not if verified): all libraries agree."""
        xp, wide = namespace(x), self.model.wide

        def norm(name: str, activation: Array) -> Array:
            return rms_norm(activation, wide(self.read(f"{self.name}.{name}.weight")))

        listener = through(self.online, self.sites, on_site)

        def arrives(at: str, activation: Array) -> Array:
            narrow = astype(activation, self.dtype)
            if listener is not None:
                answer = listener(f"{self.name}.{at}", xp.reshape(narrow, (-1, narrow.shape[-1])))
                narrow = narrow if answer is None else xp.reshape(answer, narrow.shape)
            return astype(narrow, "float64")

        def product(layer: str, activation: Array) -> Array:
            name = f"{self.name}.{layer}"
            weight = astype(given[name], "float64") if name in given else wide(self.read(f"{name}.weight"))
            y = activation @ weight.T
            on_product(name, y)
            return y

        n = arrives("q.input", norm("attention_norm", x))
        k, v = arrives("attention.key", product("k", n)), arrives("attention.value", product("v", n))
        x = x + product("o", arrives("o.input", attention(product("q", n), k, v, self.model.shape)))
        n = arrives("gate.input", norm("mlp_norm", x))
        return x + product("down", arrives("down.input", silu(product("gate", n)) * product("up", n)))

    # --- transforms ------------------------------------------------------------------------------------------

    def folds(self) -> Sequence[Fold]:
        """What a scale on each producer reaches. The heads that share a value share its scales."""
        shape, name = self.model.shape, self.name
        values = np.arange(shape.values).reshape(shape.kv_heads, 1, shape.head)
        shared = np.repeat(values, shape.heads // shape.kv_heads, axis=1).reshape(-1)
        return [
            Fold(f"{name}.attention_norm", (f"{name}.q.input",), shape.hidden),
            Fold(f"{name}.v", (f"{name}.o.input",), shape.values, shared, shape.head),
            Fold(f"{name}.mlp_norm", (f"{name}.gate.input",), shape.hidden),
            Fold(f"{name}.up", (f"{name}.down.input",), shape.intermediate),
        ]

    def apply(self, transform: Transform) -> tuple[Transform, Callable[[], None]]:
        kept = (self.weights, self.changed, self.online)
        behind = [site for site in transform.sites if site in self.online]
        if behind:
            raise ValueError(f"{behind[0]} has a map that is computed at run time; transform it before that")
        if isinstance(transform, ChannelScale):
            transform = self._scale(transform)
        elif isinstance(transform, FoldTransform):
            self._fold(transform)
        else:
            why = transform.objection(self.sites[transform.site])
            if why:
                raise ValueError(f"{transform.site}: {why}")
            self.online = {**self.online, transform.site: transform.map}
            self._feed(transform.sites, transform.map.inverse_transpose.apply)

        def undo() -> None:
            self.weights, self.changed, self.online = kept

        return transform, undo

    def _scale(self, transform: ChannelScale) -> ChannelScale:
        fold, scale = transform.fold, to_float32(transform.scale)
        producer = f"{fold.producer}.weight"
        weight = self.read(producer)
        if weight.ndim == 1:
            # A norm is written in its own dtype: what that rounds away, the consumers must get.
            new = astype(astype(weight / scale, self.stored[producer].dtype), self.dtype)
            if not new.all():
                raise ValueError(f"{fold.producer} has channels of zero, which no scale can be divided out of")
            scale = weight / new
        else:
            new = weight / scale[:, None]
        self.write(producer, new)
        self._feed(fold.sites, lambda weight: weight * fold.expand(scale))
        return ChannelScale(fold, self.model.asarray(scale))

    def _fold(self, transform: FoldTransform) -> None:
        fold, producer = transform.fold, f"{transform.fold.producer}.weight"
        if fold.head % transform.map.block:
            raise ValueError(f"{fold.producer}: its channels mix in {fold.head}s, not in {transform.map.block}s")
        self.write(producer, np.ascontiguousarray(transform.map.apply(self.read(producer).T).T))
        self._feed(fold.sites, transform.map.inverse_transpose.apply)

    def _feed(self, sites: Sequence[str], change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Change the input features of the weights at these sites."""
        for layer in (layer for site in sites for layer in self.sites[site].layers):
            self.write(f"{layer}.weight", change(self.read(f"{layer}.weight")))

    # --- writing ---------------------------------------------------------------------------------------------

    def rest(self, quantized: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.stored.items():
            if name.removesuffix(".weight") not in quantized:
                new = name in self.changed
                yield name, to_raw(astype(self.read(name), stored.dtype)) if new else stored
