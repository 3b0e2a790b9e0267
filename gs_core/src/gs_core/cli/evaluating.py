"""``gsq eval``: perplexity, and with ``--against`` the divergence of predictions from the float model's."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gs_core.cli.arguments import Adapter, AsJson, Device, Model, TrustRemoteCode
from gs_core.cli.errors import one_line_errors
from gs_core.cli.output import print_json, print_table

if TYPE_CHECKING:
    from gs_core.divergence import Comparison
    from gs_core.evaluation import Evaluation


@one_line_errors
def evaluate(
    model: Model,
    text: Annotated[
        str,
        typer.Option(
            metavar="DATA", help="Text to predict: the same kinds of data as --calibration of `gsq quantize`."
        ),
    ],
    seq_len: Annotated[int, typer.Option(min=2, metavar="L", help="Tokens in a window.")] = 256,
    windows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of windows, from the start of the text.")
    ] = 64,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FLOAT",
            help="Compare with the predictions of this float model, block by block.",
            show_default=False,
        ),
    ] = None,
    by_block: Annotated[
        bool,
        typer.Option(
            "--blocks/--no-blocks",
            help="With --against: show the figures of each block. This takes about twice the time.",
        ),
    ] = True,
    device: Device = "cpu",
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure perplexity, and with --against the divergence from a float model. Lower is better."""
    from gs_core.cli.progress import watching
    from gs_core.divergence import compare
    from gs_core.evaluation import evaluate

    with watching(f"evaluating {model}") as progress:
        if against is None:
            found = evaluate(
                model,
                text,
                seq_len=seq_len,
                windows=windows,
                device=device,
                adapter=adapter,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
        else:
            compared = compare(
                model,
                against,
                text,
                seq_len=seq_len,
                windows=windows,
                by_block=by_block,
                device=device,
                adapter=adapter,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
    if as_json:
        print_json(asdict(found) if against is None else comparison_data(compared))
    elif against is None:
        _print_perplexities(found)
        typer.echo()
    else:
        _print_comparison(compared)
    if not as_json:
        typer.echo(f"{windows} windows of {seq_len} tokens of {text}")


def comparison_data(found: "Comparison") -> dict[str, object]:
    """A comparison as plain data for JSON. Infinite signal-to-noise ratios are None."""
    data = asdict(found)
    model = data.pop("model")
    for block in data["blocks"]:
        block.update({name: None for name, value in block.items() if value == math.inf})
    return {**model, "ratio": found.ratio, **data}


def _print_perplexities(*found: "Evaluation") -> None:
    rows = [[e.model, e.scheme, f"{e.perplexity:.4f}"] for e in found]
    print_table(["model", "numbers", "perplexity"], rows, right=["perplexity"])


def _print_comparison(found: "Comparison") -> None:
    _print_perplexities(found.against, found.model)
    typer.echo()
    error = "" if found.standard_error is None else f" ± {found.standard_error:.2g}"
    typer.echo(f"ratio {found.ratio:.5f}: {_verdict(found.ratio)}")
    typer.echo(f"divergence {found.divergence:.5f}{error} nats per token, 99th percentile {found.divergence_p99:.4f}")
    typer.echo(f"top-1 agreement {100 * found.top1_agreement:.2f} %")
    typer.echo()
    rows = [
        [block.block, _decibels(block.sqnr), _decibels(block.propagated_sqnr), _nats(block.divergence)]
        for block in found.blocks
    ]
    if rows:
        headers = ["block", "SQNR dB", "propagated dB", "divergence"]
        print_table(headers, rows, right=headers[1:])
        typer.echo()
    for note in found.notes:
        typer.echo(f"note: {note}")


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def _verdict(ratio: float) -> str:
    return f"perplexity is {100 * abs(ratio - 1):.2f} % {'higher' if ratio > 1 else 'lower'} than the original's"
