"""The line: for each block observe, smooth, quantize, pack, export; recorded, then forgotten."""

import gc
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np

from gs_core import calibration, gradients, memory
from gs_core.arrays import RawTensor
from gs_core.checks import tensor_fault
from gs_core.comparing import is_finite
from gs_core.copied import checked
from gs_core.errors import CheckpointError, PluginError
from gs_core.hookspecs import Record
from gs_core.interfaces import (
    Batch,
    Block,
    Data,
    Finished,
    Layer,
    OnSite,
    Output,
    SiteTransform,
    StaticInput,
    Transform,
)
from gs_core.journal import Activations, Journal
from gs_core.packing import Outcome, pack_caches, pack_layer
from gs_core.planning import CacheRow, Plan, Row
from gs_core.quantized import QuantizedTensor
from gs_core.stages import Progress, Stages, implements
from gs_core.storage import DerivedTensor, StoredTensor, Tensor, read_header
from gs_core.streams import FLOAT, Arriving, Returned
from gs_core.verification import apply_verified
from gs_core.watching import Watch

SHARD_BYTES = 5 * 10**9


def run(
    plan: Plan,
    journal: Journal,
    tokens: np.ndarray | None,
    wrappers: Iterable[Any] = (),
    progress: Progress = lambda stage, block, blocks: None,
) -> list[str]:
    """Carry out a plan, from the first block that the journal does not hold.

    tokens: int64 ``(samples, seq_len)``, or ``None`` when the plan needs no data. ``wrappers`` are plugins with
    ``@hookimpl(wrapper=True)`` methods, called around every stage. Returns the files written at the end.
    """
    stages = Stages({**plan.algorithms, plan.recipe.format: plan.format}, wrappers)
    batches = [] if tokens is None else calibration.batches(tokens)
    blocks = len(plan.model.blocks)
    if plan.needs_loss and batches and len(journal.records) < blocks:
        gradients.prepare(plan.model, journal, batches, len(journal.records), progress)
    outside = _shards((name, checked(name, tensor)) for name, tensor in plan.model.rest())
    parts = blocks + len(outside)
    for index in range(len(journal.records), blocks):
        started = time.monotonic()
        line = _Line(plan, stages, journal, batches, index, progress)
        outcome = line.run()
        progress("export", index, blocks)
        files = stages.export(plan.recipe.format, Output(journal.out, index, parts, outcome.packed))
        _record(journal, index, files, outcome, time.monotonic() - started)
        del line, outcome
        gc.collect()  # what a framework keeps in cycles would add up until the collector thinks of it
        memory.release()
        if index:
            for stream in ("", FLOAT):
                Activations(journal, index - 1, stream).discard()
        Activations(journal, index, gradients.GRADIENT).discard()
    for part in range(max(blocks, len(journal.records)), parts):
        progress("export", blocks, blocks)
        files = stages.export(plan.recipe.format, Output(journal.out, part, parts, outside[part - blocks]))
        _record(journal, part, files, Outcome(), 0.0)
    return stages.export(plan.recipe.format, Output(journal.out, parts, parts, final=_finished(plan, journal)))


class _Line:
    """One block on its way."""

    def __init__(
        self,
        plan: Plan,
        stages: Stages,
        journal: Journal,
        batches: Sequence[np.ndarray],
        index: int,
        progress: Progress,
    ):
        self.plan, self.stages, self.journal, self.batches, self.index = plan, stages, journal, batches, index
        self.rows: dict[str, Row] = {r.layer.name: r for r in plan.rows if r.layer.block == index}
        self.caches: dict[str, CacheRow] = {
            site.name: row for row in plan.caches if row.cache.block == index and row.args for site in row.cache.sites
        }
        self.exact = plan.recipe.calibration.exact
        self.outcome = Outcome()
        self._progress = progress
        self._float_stream = plan.needs_float_stream and bool(batches)

    def _stage(self, name: str) -> None:
        memory.release()
        self._progress(name, self.index, len(self.plan.model.blocks))

    def _data(self, stream: str = "") -> Sequence[Batch]:
        return Arriving(self.journal, self.index, self.batches, stream)

    def _all_data(self, watch: Watch) -> Data:
        sizes = [len(tokens) for tokens in self.batches]
        data = Data(self._data(), sizes=sizes, as_seen=watch.as_seen(), refusal=partial(self._refusal, watch.block))
        if not self._float_stream:
            return data
        floats, targets = self._data(FLOAT), Returned(self.journal, self.index, len(self.batches), FLOAT)
        data = replace(data, floats=floats, targets=targets)
        if not self.plan.needs_loss:
            return data
        return replace(data, gradients=gradients.Gradients(self.journal, self.index, self.batches, floats))

    def _recorder(self, block: Block, algorithm: str) -> Record:
        def record(**facts: Any) -> None:
            self.outcome.records.append({"block": block.name, "algorithm": algorithm, **facts})

        return record

    def run(self) -> Outcome:
        self._stage("load")
        block = self.plan.model.block(self.index, next(iter(self._data()), None))
        quantizing = []
        for name, row in self.rows.items():
            if row.scheme is not None:
                layer = block.layers[name]
                layer.scheme = row.scheme
                quantizing.append(layer)
        for layer in quantizing:
            _check_weight(layer)
        if self._float_stream:
            self._stage("propagate")
            self._propagate(block, None, FLOAT)
        floats = self._data(FLOAT) if self._float_stream else ()
        watch = Watch(self.stages, block, self.rows, self._data(), floats, self.caches, self.exact)
        if self.batches:
            smoothing = self._algorithms("smooth")
            blind = list(takewhile(lambda name: not implements(self.plan.algorithms[name], "observe"), smoothing))
            for name in blind:  # nothing need be seen for these, and what is seen after them is right at once
                self._smooth(name, block, quantizing, watch)
            self._stage("observe")
            watch.run(self._after() if self.plan.float_only and self._has_next else None)
            for name in smoothing[len(blind) :]:
                self._smooth(name, block, quantizing, watch)
        static = {name: site.static_input() for name, site in watch.sites.items()}
        caches = watch.static_caches()
        self._quantize(block, quantizing, watch, static)
        pack_caches(self.plan, watch, caches, self.outcome)
        if self.batches and self._has_next and not self.plan.float_only:
            self._stage("propagate")
            self._propagate(block, watch.as_seen())
        rest = block.rest({layer.name for layer in quantizing})
        self.outcome.packed += [(name, checked(name, tensor)) for name, tensor in rest]
        return self.outcome

    def _algorithms(self, hook: str) -> list[str]:
        named = {n for row in self.rows.values() for n in row.algorithms}
        named |= {n for row in self.caches.values() for n in row.mapping} if hook == "smooth" else set()
        return [n for n in self.plan.algorithms if n in named and implements(self.plan.algorithms[n], hook)]

    def _smooth(self, name: str, block: Block, layers: Sequence[Layer], watch: Watch) -> None:
        self._stage("smooth")
        mine = [layer for layer in layers if name in self.rows[layer.name].algorithms]
        keys = [block.sites[n] for n, row in self.caches.items() if name in row.mapping]
        keys = [site for site in keys if site.kind == "key"]
        data, record = self._all_data(watch), self._recorder(block, name)
        transforms = self.stages.smooth(name, block, mine, watch.observed(name), data, record, keys)
        if not transforms:
            self.outcome.notes.append(f"{block.name}: {name} found nowhere to fold a scale")
        refused = [(t, why) for t in transforms if (why := self._refusal(block, t))]
        possible = [t for t in transforms if not self._refusal(block, t)]
        verified = apply_verified(block, possible, self._data()[0])
        for transform in verified.applied:
            watch.account(transform)
        watch.renew_caches(verified.applied)
        if verified.rounding_error is not None:
            error = {"block": block.name, "algorithm": name, "error": verified.rounding_error}
            self.outcome.rounding_errors.append(error)
        for transform, why in [*refused, *verified.dropped]:
            self.outcome.notes.append(f"{block.name}: {name} at {transform.where} was dropped: {why}")

    def _refusal(self, block: Block, transform: Transform) -> str | None:
        """Why the checkpoint could not say it."""
        if not isinstance(transform, SiteTransform):
            return None
        if block.sites[transform.site].kind != "input":
            return self._refusal_of_keys(transform)
        layers = block.sites[transform.site].layers
        floating = [n for n in layers if self.rows[n].scheme is None]
        if floating:
            return f"{', '.join(floating)} shares the input and stays in floating point"
        asked = (
            self.plan.format.unsupported_map(transform.map, self.rows[n].layer, s)
            for n in layers
            if (s := self.rows[n].scheme)
        )
        return next((why for why in asked if why), None)

    def _refusal_of_keys(self, transform: SiteTransform) -> str | None:
        if transform.site not in self.caches:
            return "it stays in floating point"
        if transform.map.kind not in self.plan.format.holds_keys:
            return f"this checkpoint format holds no {transform.map.kind} map of cached keys"
        return None

    def _quantize(
        self, block: Block, layers: Sequence[Layer], watch: Watch, static: Mapping[str, StaticInput | None]
    ) -> None:
        for name in self._algorithms("quantize"):
            mine = [layer for layer in layers if self.rows[layer.name].quantizer == name]
            if not mine:
                continue
            self._stage("quantize")
            data, record = self._all_data(watch), self._recorder(block, name)
            data = replace(data, start=self._start(block, mine, watch))
            tensors = self.stages.quantize(name, block, mine, watch.observed(name), data, record)
            for layer in mine:
                fault = tensor_fault(tensors[layer.name])
                if fault:
                    raise PluginError(f"algorithm '{name}' quantized {layer.name} wrongly: {fault}")
            self._stage("pack")
            for layer in mine:
                pack_layer(self.plan, watch, layer, tensors[layer.name], static.get(layer.site), self.outcome)

    def _start(self, block: Block, layers: Sequence[Layer], watch: Watch) -> dict[str, QuantizedTensor]:
        """What the algorithms make of these layers whose results the last one refines."""
        found: dict[str, QuantizedTensor] = {}
        for name in self._algorithms("quantize"):
            earlier = [layer for layer in layers if name in self.rows[layer.name].algorithms[:-1]]
            if earlier and not implements(self.plan.algorithms[name], "smooth"):
                data, record = self._all_data(watch), self._recorder(block, name)
                found |= self.stages.quantize(name, block, earlier, watch.observed(name), data, record)
        return found

    @property
    def _has_next(self) -> bool:
        return self.index + 1 < len(self.plan.model.blocks)

    def _after(self, stream: str = "") -> Activations:
        return Activations(self.journal, self.index, stream)

    def _propagate(self, block: Block, on_site: OnSite | None, stream: str = "") -> None:
        after = self._after(stream)
        with block.computing(self.exact):
            for number, (tokens, previous) in enumerate(self._data(stream)):
                after.write(number, block.run(tokens, previous, on_site))


def _check_weight(layer: Layer) -> None:
    if not is_finite(layer.view()):
        raise CheckpointError(f"{layer.name}: the weight holds NaN or infinity; the source is damaged")


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> list[list[tuple[str, Tensor]]]:
    """Cut what lies outside the blocks into shards of at most ``SHARD_BYTES`` (a larger tensor has its own)."""
    shards: list[list[tuple[str, Tensor]]] = []
    room = 0
    for name, tensor in tensors:
        nbytes = tensor.nbytes if isinstance(tensor, RawTensor | StoredTensor | DerivedTensor) else 0
        if not shards or nbytes > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append((name, tensor))
        room -= nbytes
    return shards


def _record(journal: Journal, part: int, files: Sequence[str], outcome: Outcome, seconds: float) -> None:
    journal.record(
        part,
        files,
        streams=[f"{part}{stream}" for stream in ("", FLOAT)],
        layers=outcome.layers,
        caches=outcome.caches,
        notes=outcome.notes,
        records=outcome.records,
        rounding_errors=outcome.rounding_errors,
        seconds=round(seconds, 3),
    )


def _finished(plan: Plan, journal: Journal) -> Finished:
    shards = {
        name: {n: t.nbytes for n, t in read_header(journal.out / name).items()}
        for record in journal.records
        for name in record["files"]
        if name.endswith((".safetensors", ".ckpt"))
    }
    schemes = {row.layer.name: row.scheme for row in plan.rows if row.scheme is not None}
    kept = [row.layer.name for row in plan.rows if row.scheme is None] + list(plan.model.kept)
    aliases = {row.layer.name: row.layer.alias for row in plan.rows if row.layer.alias}
    caches = {row.cache: row.args for row in plan.caches if row.args}
    online = {row["layer"]: row["online"] for record in journal.records for row in record["layers"] if "online" in row}
    keys = {row["cache"]: row["online"] for record in journal.records for row in record["caches"] if "online" in row}
    return Finished(plan.model.config(), schemes, kept, plan.model.files(), shards, aliases, caches, online, keys)
