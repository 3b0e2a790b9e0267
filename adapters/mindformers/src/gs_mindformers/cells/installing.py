"""Putting quantized cells in the place of a network's linear cells and caches."""

from collections.abc import Iterable, Mapping

import mindspore as ms
import numpy as np

from gs_core import CheckpointError, PlanError
from gs_core.arrays import PACKED_INT4, RawTensor, from_raw, to_raw
from gs_core.storage import DerivedTensor, StoredTensor, Tensor
from gs_mindformers.cells.cache import MARKER, QuantizedCache
from gs_mindformers.cells.linear import QuantizedLinear
from gs_mindformers.cells.spec import Spec, read_specs
from gs_mindformers.linear import CACHE, Held, held_by, is_a
from gs_mindformers.rotary import ROTATION, Rotation
from gs_mindformers.tensors import dtype_name, to_tensor


def deploy(network: ms.nn.Cell, specs: Mapping[str, Spec], caches: Iterable[str] = ()) -> ms.nn.Cell:
    """Put a cell for each spec, uninitialised, in the place of the layer of that name, and an int8 cache in the place
    of each ``PagedAttentionMgr`` named; returns the network.

    Raises ``PlanError`` when a name is no such cell's, or its cell cannot be replaced. Nothing is replaced then.
    """
    _place(network, _make(network, specs, caches))
    return network


def install(network: ms.nn.Cell, tensors: Mapping[str, Tensor]) -> list[str]:
    """Make a network compute with a file's quantized layers and caches, and load everything in the file into it.

    tensors: by the names of Golden Stick's networks. Returns the names of parameters that the file lacks, but for what
    caches hold. Raises ``PlanError`` as ``deploy`` does, and ``CheckpointError`` when the file has something that the
    network has no place for; the network is then as it was.
    """
    made = _make(network, read_specs(tensors), (n.removesuffix(MARKER) for n in tensors if n.endswith(MARKER)))
    loaded = _fitting(_joined(network, tensors), _parameters(network, made))
    _place(network, made)
    missing, _ = ms.load_param_into_net(network, loaded)
    parameters = network.parameters_dict()
    return [name for name in missing if name in parameters and not name.endswith(("key_cache", "value_cache"))]


def refusals(network: ms.nn.Cell, layers: Iterable[str], caches: Iterable[str] = ()) -> list[str]:
    """Why cells of these names cannot be replaced: one sentence for each that cannot."""
    held, paged = _replaceable(network)
    problems = [f"{name}: {why}" for name in layers if (why := _why_not(held.get(name)))]
    return problems + [f"{n}: the network has no PagedAttentionMgr of that name" for n in caches if n not in paged]


# --- making and placing --------------------------------------------------------------------------------------

Made = dict[str, tuple[str, ms.nn.Cell]]
"""Path of a cell → the name that its parameters will begin with, and what is to stand there."""


def _replaceable(network: ms.nn.Cell) -> tuple[dict[str, Held], dict[str, str]]:
    """Linear cells by the name of their layers, and the paths of caches by theirs."""
    held: dict[str, Held] = {}
    paged: dict[str, str] = {}
    for path, cell in network.cells_and_names():
        found = held_by(path, cell)
        if isinstance(found, Held):
            held |= dict.fromkeys([found.parameter.removesuffix(".weight"), *found.names()], found)
        elif is_a(cell, CACHE):
            paged[cell.key_cache.name.removesuffix(".key_cache")] = path
    return held, paged


def _make(network: ms.nn.Cell, specs: Mapping[str, Spec], caches: Iterable[str]) -> Made:
    caches = list(caches)
    problems = refusals(network, specs, caches)
    if problems:
        raise PlanError(problems)
    held, paged = _replaceable(network)
    cells = dict(network.cells_and_names())
    made: Made = {held[name].path: (name, _cell(held[name], spec)) for name, spec in specs.items()}
    made |= {paged[name]: (name, QuantizedCache(cells[paged[name]])) for name in caches}
    if ms.get_context("device_target") != "Ascend":  # where a network with a cache cannot rotate its keys either
        around = {paged[name].rpartition(".")[0] for name in caches}
        made |= {p: (p, Rotation()) for p, c in cells.items() if is_a(c, ROTATION) and p.rpartition(".")[0] in around}
    return made


def _parameters(network: ms.nn.Cell, made: Made) -> dict[str, ms.Parameter]:
    """What the network's parameters will be."""
    cells = dict(network.cells_and_names())
    gone = {parameter.name for path in made for parameter in cells[path].get_parameters()}
    kept = {name: parameter for name, parameter in network.parameters_dict().items() if name not in gone}
    return kept | {f"{name}.{n}": p for name, cell in made.values() for n, p in cell.parameters_and_names()}


def _place(network: ms.nn.Cell, made: Made) -> None:
    cells = dict(network.cells_and_names())
    for path, (name, cell) in made.items():
        owner, _, leaf = path.rpartition(".")
        cells[owner]._cells[leaf] = cell
        for inside, parameter in cell.parameters_and_names():
            parameter.name = f"{name}.{inside}"


def _why_not(held: Held | None) -> str | None:
    if held is None:
        return "the network has no linear cell of that name"
    if held.experts is not None:
        return "grouped products of experts have no quantized cell yet; leave these layers in floating point"
    if getattr(held.cell, "tensor_parallel_group_size", 1) > 1:
        return "its product is divided among devices; quantize before it is"
    return None


def _cell(held: Held, spec: Spec) -> QuantizedLinear:
    cell, bias = held.cell, held.cell._params.get("bias")
    bias = None if bias is None else bias.clone()  # a parameter is renamed by the cell that takes it
    dtype = getattr(cell, "compute_dtype", None) or getattr(cell, "dtype", None) or cell._params["weight"].dtype
    activation = getattr(cell, "activation", None) if getattr(cell, "activation_flag", False) else None
    return QuantizedLinear(spec, *held.shape, dtype, bias, activation, held.transposed)


# --- loading -------------------------------------------------------------------------------------------------


def _joined(network: ms.nn.Cell, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the weights of experts, which a file has one by one, in one parameter as the network has it."""
    found = dict(tensors)
    for held in set(_replaceable(network)[0].values()):
        parts = [f"{name}.weight" for name in held.names()]
        if held.experts is not None and all(part in found for part in parts):
            found[held.parameter] = to_raw(np.stack([from_raw(_read(found.pop(part))) for part in parts]))
    return found


def _fitting(tensors: Mapping[str, Tensor], parameters: Mapping[str, ms.Parameter]) -> dict[str, ms.Parameter]:
    """The file's tensors for ``load_param_into_net``. Raises ``CheckpointError`` for those that have no place."""
    strangers = sorted(set(tensors) - set(parameters))
    if strangers:
        raise CheckpointError(f"the network has no parameter for {', '.join(strangers[:3])}")
    loaded = {}
    for name, tensor in tensors.items():
        parameter, found = parameters[name], ms.Parameter(_tensor(_read(tensor)), name=name, requires_grad=False)
        if found.shape != parameter.shape:
            raise CheckpointError(f"{name} is {found.shape} in the file, {parameter.shape} in the network")
        floats = found.dtype.is_floating_point and parameter.dtype.is_floating_point  # which loading converts
        if found.dtype != parameter.dtype and not floats:
            raise CheckpointError(f"{name} is {dtype_name(found)} in the file, {dtype_name(parameter)} in the network")
        loaded[name] = found
    return loaded


def _read(tensor: Tensor) -> RawTensor:
    if isinstance(tensor, StoredTensor | DerivedTensor):
        return tensor.read()
    return tensor if isinstance(tensor, RawTensor) else to_raw(tensor)


def _tensor(raw: RawTensor) -> ms.Tensor:
    if raw.dtype == PACKED_INT4:
        return ms.Tensor(raw.data.view(np.int8).reshape(raw.shape), dtype=ms.qint4x2)
    return to_tensor(from_raw(raw))
