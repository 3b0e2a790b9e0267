"""Floating-point operations that an algorithm cannot do without, on a Llama of a given shape."""

from checkpoints import Shape

FACTORISATIONS = "factorisations"
"""All but these may be multiplied in the dtype that the model is stored in."""
FORWARD = "forward in int8"
"""What loses more by four bits, or is served in int8, may be observed so."""


def sites(shape: Shape) -> list[tuple[int, int]]:
    """``(in_features, out_features of all layers fed)`` for the four sites of a block."""
    keys = shape.hidden // shape.heads * shape.kv_heads
    return [
        (shape.hidden, shape.hidden + 2 * keys),
        (shape.hidden, shape.hidden),
        (shape.hidden, 2 * shape.intermediate),
        (shape.intermediate, shape.hidden),
    ]


def attention(shape: Shape) -> int:
    """Scores, and sums of values, of the tokens before each."""
    return shape.layers * 2 * shape.samples * shape.seq_len**2 * shape.hidden


def forward(shape: Shape) -> int:
    """All calibration tokens by all weights: every block runs once, observed; the last one up to its last product,
    which only a next block's inputs need."""
    of_block = [2 * shape.samples * shape.seq_len * n * rows for n, rows in sites(shape)]
    return shape.layers * sum(of_block) - of_block[-1]


def hessians(shape: Shape) -> int:
    """``x xᵀ`` is symmetric: half of a product."""
    return shape.layers * sum(shape.samples * shape.seq_len * n * n for n, _ in sites(shape))


def factorisations(shape: Shape) -> int:
    """A Cholesky factorisation for each site."""
    return shape.layers * sum(n**3 // 3 for n, _ in sites(shape))


def feedback(shape: Shape) -> int:
    """Each feature of each row receives the errors of those before it."""
    return shape.layers * sum(rows * n * n for n, rows in sites(shape))


def sweep(shape: Shape) -> int:
    """Each feature of each row receives the errors of all others."""
    return 2 * feedback(shape)


def necessary(recipe: str, shape: Shape) -> dict[str, int]:
    """By name; what is linear in the weights (rounding, searching scales) is not counted."""
    runs = {FORWARD: forward(shape), "attention": attention(shape)}
    if "gptq" in recipe:
        return runs | {
            "Hessians": hessians(shape),
            FACTORISATIONS: factorisations(shape),
            "feedback": feedback(shape),
            "sweep": sweep(shape),
        }
    if "awq" in recipe:
        return runs | {"second moments": hessians(shape), "clipping": sweep(shape)}
    return runs


def seconds(parts: dict[str, int], rates: dict[str, float]) -> dict[str, float]:
    """At the machine's rates: factorisations in float32, the forward in the fastest, all else in bfloat16 where that is
    faster than float32."""
    narrow = max(rates["float32"], rates["bfloat16"])
    by_name = {FACTORISATIONS: rates["float32"], FORWARD: max(rates.values())}
    return {name: ops / by_name.get(name, narrow) for name, ops in parts.items()}
