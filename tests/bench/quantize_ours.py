"""One quantization by this project, measured: `quantize_ours.py MODEL RECIPE OUT TOKENS.npy`.

RECIPE is a preset or one of those in rows.py.
"""

from resources import asked, cpu_seconds, report
from rows import SCHEMES_AND_ALGORITHMS


def main() -> None:
    given = asked()

    import numpy
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401 - imported by the peers before they begin

    from gs_core import quantize
    from gs_schemas import Recipe
    from gs_schemas import recipe as named

    tokens = numpy.load(given.tokens)
    before = cpu_seconds()
    samples, seq_len = tokens.shape
    ours = SCHEMES_AND_ALGORITHMS.get(given.recipe)
    recipe = Recipe.parse(ours) if ours else named(given.recipe)
    weights = recipe.scheme.weights
    if weights is not None and weights.bits in (3, 4) and weights.group_size not in (None, given.group_size):
        weights = weights.model_copy(update={"group_size": given.group_size})
        scheme = recipe.scheme.model_copy(update={"name": None, "weights": weights})
        recipe = recipe.model_copy(update={"scheme": scheme})
    made = quantize(given.model, recipe, given.out, calibration=tokens, samples=samples, seq_len=seq_len, restart=True)
    report(quantize=cpu_seconds() - before, bytes=made.data["bytes_after"], torch=torch.__version__)


if __name__ == "__main__":
    main()
