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
from gs_mindformers.tensors import to_tensor


def deploy(network: ms.nn.Cell, specs: Mapping[str, Spec], caches: Iterable[str] = ()) -> ms.nn.Cell:
    """Put a cell for each spec, uninitialised, in the place of the layer of that name, and an int8 cache in the place
    of each ``PagedAttentionMgr`` named; returns the network.

    Raises ``PlanError`` when a name is no such cell's, or its cell cannot be replaced. Nothing is replaced then.
    """
    cells = dict(network.cells_and_names())
    held = {h.parameter.removesuffix(".weight"): h for p, c in cells.items() if (h := _plain(p, c))}
    paged = {c.key_cache.name.removesuffix(".key_cache"): p for p, c in cells.items() if is_a(c, CACHE)}
    problems = [f"{name}: {why}" for name in specs if (why := _why_not(held.get(name)))]
    problems += [f"{name}: the network has no PagedAttentionMgr of that name" for name in caches if name not in paged]
    if problems:
        raise PlanError(problems)
    made: dict[str, tuple[str, ms.nn.Cell]] = {n: (held[n].path, _cell(held[n], spec)) for n, spec in specs.items()}
    made |= {name: (paged[name], QuantizedCache(cells[paged[name]])) for name in caches}
    for name, (path, cell) in made.items():
        owner, _, leaf = path.rpartition(".")
        cells[owner]._cells[leaf] = cell
        for inside, parameter in cell.parameters_and_names():
            parameter.name = f"{name}.{inside}"
    return network


def install(network: ms.nn.Cell, tensors: Mapping[str, Tensor]) -> list[str]:
    """Make a network compute with a file's quantized layers and caches, and load everything in the file into it.

    tensors: by the names of Golden Stick's networks. Returns the names of parameters that the file lacks, but for what
    caches hold; raises ``CheckpointError`` when it has something that the network has no place for.
    """
    deploy(network, read_specs(tensors), [name.removesuffix(MARKER) for name in tensors if name.endswith(MARKER)])
    parameters = network.parameters_dict()
    loaded = {}
    for name, tensor in tensors.items():
        value = _read(tensor)
        if name in parameters:
            _fit(parameters[name], value, name)
        loaded[name] = ms.Parameter(_tensor(value), name=name, requires_grad=False)
    missing, left = ms.load_param_into_net(network, loaded)
    if left:
        raise CheckpointError(f"the network has no parameter for {', '.join(sorted(left)[:3])}")
    return [name for name in missing if name in parameters and not name.endswith(("key_cache", "value_cache"))]


def _plain(path: str, cell: ms.nn.Cell) -> Held | None:
    held = held_by(path, cell)
    return held if isinstance(held, Held) else None


def _why_not(held: Held | None) -> str | None:
    if held is None:
        return "the network has no linear cell of that name"
    if held.experts is not None:
        return "grouped products of experts have no quantized cell yet; give these layers an override to float"
    if getattr(held.cell, "tensor_parallel_group_size", 1) > 1:
        return "its product is divided among devices; quantize before it is"
    return None


def _cell(held: Held, spec: Spec) -> QuantizedLinear:
    cell, bias = held.cell, held.cell._params.get("bias")
    dtype = getattr(cell, "compute_dtype", None) or getattr(cell, "dtype", None) or cell._params["weight"].dtype
    activation = getattr(cell, "activation", None) if getattr(cell, "activation_flag", False) else None
    return QuantizedLinear(spec, *held.shape, dtype, bias, activation)


# --- loading -------------------------------------------------------------------------------------------------


def _read(tensor: Tensor) -> RawTensor:
    if isinstance(tensor, StoredTensor | DerivedTensor):
        return tensor.read()
    return tensor if isinstance(tensor, RawTensor) else to_raw(tensor)


def _tensor(raw: RawTensor) -> ms.Tensor:
    if raw.dtype == PACKED_INT4:
        return ms.Tensor(raw.data.view(np.int8).reshape(raw.shape), dtype=ms.qint4x2)
    return to_tensor(from_raw(raw))


def _fit(parameter: ms.Parameter, raw: RawTensor, name: str) -> None:
    if tuple(parameter.shape) != tuple(raw.shape):
        raise CheckpointError(f"{name} is {tuple(raw.shape)} in the file, {tuple(parameter.shape)} in the network")
