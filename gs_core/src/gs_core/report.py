"""What happened: totals, every layer, the worst ones. Written beside the weights, and printed by the command."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gs_core import bad_layers, memory
from gs_core.journal import REPORT, Journal
from gs_core.planning import Plan
from gs_core.storage import file_digest, write_json


@dataclass(frozen=True)
class Report:
    """The content of ``gsq_report.json``; ``data`` is plain."""

    out: Path
    data: dict[str, Any]

    @property
    def layers(self) -> list[dict[str, Any]]:
        return self.data["layers"]

    def worst(self, count: int = 5) -> list[dict[str, Any]]:
        """The layers with the largest relative squared error, worst first."""
        return sorted(self.layers, key=lambda row: -row["error"])[:count]


def write(plan: Plan, journal: Journal, tokens: np.ndarray | None, files: list[str], seconds: float) -> Report:
    """Assemble the report and write it. Everything but ``run`` is the same for the same input."""
    caches = [row for record in journal.records for row in record.get("caches", ())]
    layers = [row for record in journal.records for row in record["layers"]]
    weights = {f: facts for record in journal.records for f, facts in record["files"].items()}
    digests = {name: file_digest(journal.out / name) for name in files if name != REPORT}
    digests |= {name: facts["sha256"] for name, facts in weights.items()}
    lost = plan.model.rotation_divergence
    data = {
        "recipe": plan.recipe.model_dump(mode="json", exclude_defaults=True),
        "calibration": None if tokens is None else {"samples": tokens.shape[0], "seq_len": tokens.shape[1]},
        "model": plan.model.name,
        "plugins": dict(plan.versions),
        "bytes_before": plan.bytes_before,
        **({"source_schemes": plan.source.schemes} if plan.source else {}),
        "bytes_after": sum(facts["bytes"] for facts in weights.values()),
        "schemes": dict(Counter(row["scheme"] for row in layers)),
        "kept_in_float": [row for row in plan.table() if row["scheme"] == "float"],
        "engines": [asdict(engine) for engine in plan.engines],
        "layers": layers,
        **({"caches": caches} if caches else {}),
        "records": [facts for record in journal.records for facts in record["records"]],
        "rounding_errors": [error for record in journal.records for error in record.get("rounding_errors", ())],
        "notes": [
            *bad_layers.notes_on(plan, layers),
            *plan.notes,
            *plan.warnings,
            *(note for record in journal.records for note in record["notes"]),
        ],
        "files": sorted({*weights, *files, REPORT}),
        "sha256": dict(sorted(digests.items())),
        "run": {
            "seconds": round(sum(record["seconds"] for record in journal.records), 3),
            "seconds_of_this_process": round(seconds, 3),
            "peak_memory_bytes": memory.peak(),
            **({} if lost is None else {"rotation_divergence": lost}),
        },
    }
    write_json(journal.out / REPORT, data)
    return Report(journal.out, data)
