"""Rows that make up for each other's errors, by what a layer's outputs do to the model's predictions.

GPTQ takes every output for as important as any other, and each on its own. To the model they are neither: errors E
cost nearly ``tr(G E H Eᵀ)``, with G of ``gs_core.guidance`` beside ``H = Σ x xᵀ``. Started from GPTQ's codes, a sweep
of coordinate descent takes some rows at a time, whose targets are moved by what the errors of all others cost through
G.
"""

from collections.abc import Sequence

from gs_core import Array, Block, Data, Layer, guidance, namespace
from gs_gptq.grid import Grid
from gs_gptq.hessian import Factors
from gs_gptq.refine import refine

PARTS = 16
"""Into so many parts the rows are divided. Those of a part do not see each other in a sweep."""
STEADY = 1.8
"""How strong what rows of a part mean to each other may be, beside what each means alone: at 2 their steps, taken
together, would overshoot."""

Coupling = tuple[slice, Array]
"""Rows, and what they mean together, ``(rows, rows)`` float32."""


def couplings(block: Block, layers: Sequence[Layer], data: Data) -> dict[str, Array]:
    """What the outputs of layers mean together, ``(out, out)`` float32, by layer.

    Layers with more outputs than inputs are left out: it would cost more than what is known of the inputs, and of what
    an MLP widens there is little to gain. So are layers that no token reached, or that the predictions do not depend
    on. Raises ``CalibrationError`` where a gradient is no number.
    """
    wanted = {layer.name for layer in layers if layer.shape[0] <= layer.shape[1]}
    found: dict[str, Array] = {}

    def on_gradient(name: str, gradient: Array) -> None:
        if name in wanted:
            product = namespace(gradient).permute_dims(gradient, (1, 0)) @ gradient
            found[name] = found[name] + product if name in found else product

    for batch, gradient in data.gradients:
        block.backward(*batch, gradient, on_gradient)
    known = {
        name: guidance.bounded(total, f"{name}: the gradient of the model's loss at its output")
        for name, total in found.items()
    }
    return {name: _product(*eigen) for name, eigen in known.items() if eigen is not None}


def _product(values: Array, vectors: Array) -> Array:
    return vectors * values[None, :] @ namespace(vectors).permute_dims(vectors, (1, 0))


def refine_together(
    codes: Array,
    errors: Array,
    factors: Factors,
    groups: Sequence[int],
    grid: Grid,
    coupled: Sequence[Coupling],
) -> None:
    """``refine`` where some rows mean something together; those in none of ``coupled`` are on their own."""
    ends = [0, *(end for rows, _ in coupled for end in (rows.start, rows.stop)), codes.shape[1]]
    alone = [slice(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True) if start < stop]
    if alone:
        _refine_rows(alone, _at(errors, alone), codes, errors, factors, groups, grid)
    for part in range(PARTS):
        # Layers that share their input know nothing of each other: a part of each goes at once.
        some = [(rows, coupling) for rows, coupling in coupled if part < rows.stop - rows.start]
        if some:
            rows = [slice(rows.start + part, rows.stop, PARTS) for rows, _ in some]
            seen = [_others(errors[:, rows], coupling, part) for rows, coupling in some]
            _refine_rows(rows, _joined(seen), codes, errors, factors, groups, grid)


def _others(errors: Array, coupling: Array, part: int) -> Array:
    """The errors of a part's rows as all errors make them, ``(features, rows)``: what is to become small."""
    xp = namespace(coupling)
    mine = coupling[part::PARTS, part::PARTS]
    own = xp.linalg.diagonal(mine) + 0.0
    root = xp.sqrt(own)
    strongest = float(xp.max(xp.linalg.eigvalsh(mine / (root[:, None] * root[None, :]))))
    return errors @ coupling[:, part::PARTS] / (own * max(1.0, strongest / STEADY))[None, :]


def _refine_rows(
    rows: Sequence[slice],
    seen: Array,
    codes: Array,
    errors: Array,
    factors: Factors,
    groups: Sequence[int],
    grid: Grid,
) -> None:
    """``refine`` some rows, whose errors are ``seen`` as they are or as something else."""
    its, part, after = _at(codes, rows), grid.part(rows), seen + 0.0
    refine(its, after, factors, groups, part)
    after -= seen
    start = 0
    for piece in rows:
        stop = start + len(range(codes.shape[1])[piece])
        codes[:, piece] = its[:, start:stop]
        errors[:, piece] = errors[:, piece] + after[:, start:stop]
        start = stop
    grid.take(rows, part)


def _at(x: Array, rows: Sequence[slice]) -> Array:
    """Some columns, a copy."""
    return _joined([x[:, piece] for piece in rows]) + 0


def _joined(parts: Sequence[Array]) -> Array:
    return namespace(parts[0]).concat(parts, axis=1) if len(parts) > 1 else parts[0]
