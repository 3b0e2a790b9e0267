"""``gsq eval``: perplexity, and what quantization costs of it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gs_core.cli.arguments import Adapter, AsJson, Device, Model, TrustRemoteCode
from gs_core.cli.errors import one_line_errors
from gs_core.cli.output import print_json, print_table

if TYPE_CHECKING:
    from gs_core.evaluation import Evaluation


@one_line_errors
def evaluate(
    model: Model,
    text: Annotated[str, typer.Option(metavar="DATA", help="Text to predict: whatever --calibration takes.")],
    seq_len: Annotated[int, typer.Option(min=2, metavar="L", help="Tokens in a window.")] = 256,
    windows: Annotated[int, typer.Option(min=1, metavar="N", help="How many windows, from the start.")] = 64,
    against: Annotated[
        str | None, typer.Option(metavar="ORIGINAL", help="Measure this folder too, and compare.", show_default=False)
    ] = None,
    device: Device = "cpu",
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, of float and quantized folders alike. Lower is better."""
    folders = [name for name in (against, model) if name is not None]
    found = [_measure(name, text, seq_len, windows, device, adapter, trust_remote_code) for name in folders]
    ratio = found[-1].perplexity / found[0].perplexity
    if as_json:
        answer: dict[str, Any] = asdict(found[-1])
        if against is not None:
            answer |= {"against": asdict(found[0]), "ratio": ratio}
        print_json(answer)
        return
    print_table(
        ["model", "numbers", "perplexity"],
        [[e.model, e.scheme, f"{e.perplexity:.4f}"] for e in found],
        right=["perplexity"],
    )
    typer.echo()
    if against is not None:
        typer.echo(f"ratio {ratio:.5f}: {_verdict(ratio)}")
    typer.echo(f"{windows} windows of {seq_len} tokens of {text}")


def _measure(
    model: str, text: str, seq_len: int, windows: int, device: str, adapter: str | None, trust_remote_code: bool
) -> "Evaluation":
    from gs_core.cli.progress import watching
    from gs_core.evaluation import evaluate

    with watching(f"evaluating {model}") as progress:
        return evaluate(
            model,
            text,
            seq_len=seq_len,
            windows=windows,
            device=device,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )


def _verdict(ratio: float) -> str:
    return f"perplexity is {100 * abs(ratio - 1):.2f} % {'higher' if ratio > 1 else 'lower'} than the original's"
