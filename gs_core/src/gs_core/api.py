"""The calls that start a run: ``plan`` and ``quantize`` (and opening what they work on)."""

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import gs_schemas
from gs_core import allocation, discovery, hub, memory, pipeline, report
from gs_core import calibration as calibrating
from gs_core.errors import CalibrationError, CheckpointError, OutputError, PlanError
from gs_core.interfaces import Adapter, CacheNumbers, CheckpointFormat, LayerNumbers, Model
from gs_core.journal import FOLDER, Journal
from gs_core.output import check_output
from gs_core.planning import Plan, QuantizedSource, load_format, make
from gs_core.report import Report
from gs_core.stages import Progress
from gs_core.storage import Checkpoint, check_float, check_unread
from gs_schemas import QuantizationScheme, Recipe, SchemaError

DESCRIPTIONS = "quant*_description.json"
"""Files that describe quantized weights if config.json does not."""
Source = Any
"""A checkpoint folder (``str`` or ``Path``), a hub id in the local cache, or a live model that an adapter handles."""


def resolve_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe object, a preset's name, or a YAML or JSON file. Raises ``PlanError``."""
    if isinstance(recipe, Recipe):
        return recipe
    try:
        path = Path(recipe)
        if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
            return Recipe.from_file(path)
        if str(recipe) not in gs_schemas.RECIPES:
            raise PlanError([gs_schemas.unknown_recipe(str(recipe)) + " Or give a .yaml or .json file"])
        return gs_schemas.recipe(str(recipe))
    except SchemaError as error:
        raise PlanError([f"{error.what}: {problem}" for problem in error.problems]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError([f"cannot read recipe {recipe}: {getattr(error, 'strerror', None) or error}"]) from None


@dataclass(frozen=True)
class Opened:
    """A model, the name of the adapter that opened it, and, for a quantized folder, how its layers and caches
    compute."""

    adapter: str
    model: Model
    numbers: dict[str, LayerNumbers]
    caches: dict[str, CacheNumbers] = field(default_factory=dict)

    def schemes(self) -> str:
        """The schemes of a quantized folder, ``W8A8; kv int8 tensor``; empty for a float model."""
        found = [numbers.scheme for numbers in self.numbers.values()]
        found += [QuantizationScheme(kv_cache=numbers.args) for numbers in self.caches.values()]
        return "; ".join(sorted({scheme.describe() for scheme in found}))


def open_source(
    source: Source, device: str = "cpu", adapter: str | Adapter | None = None, trust_remote_code: bool = False
) -> Opened:
    """Open a folder or a live model with the first adapter that can. A quantized folder is opened as a float model.

    trust_remote_code: run Python code from the folder.

    Raises ``PlanError`` when no adapter does, ``CheckpointError`` for a damaged folder.
    """
    memory.settle()
    if isinstance(source, str | Path):
        source = _model_folder(source)
    if isinstance(source, Path) and (source / FOLDER).is_dir():
        raise PlanError([f"{source} is an unfinished run; run the same quantize command again to finish it"])
    name, chosen = _choose_adapter(source, adapter)
    found = _format_of(source) if isinstance(source, Path) else None
    if found is None:
        stored = Checkpoint(source) if isinstance(source, Path) else None
        if stored is not None:
            check_unread(stored.tensors)
        model = chosen.open(source, device, stored, trust_remote_code)
        for layer in model.layers:
            check_float(layer.name, layer.dtype)
        return Opened(name, model, {})
    reader, stored, config = found
    checkpoint, numbers = reader.read(stored, config)
    check_unread(checkpoint.tensors)
    model = chosen.open(source, device, checkpoint, trust_remote_code)
    return Opened(name, model, numbers, reader.read_caches(stored, config, model.caches))


def _model_folder(source: str | Path) -> Path:
    """The folder itself, or the snapshot in the local Hugging Face cache if ``source`` is a hub id."""
    if not str(source).strip():
        raise PlanError(["the path of the model is empty; give a checkpoint folder"])
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise PlanError([f"{source} is a file; give the model's folder"])
    found = hub.snapshot("models", str(source))
    if found is None:
        raise PlanError([f"{source}: no such model folder{hub.how_to_download('models', str(source))}"])
    return found


def _choose_adapter(source: Source, adapter: str | Adapter | None) -> tuple[str, Adapter]:
    if isinstance(adapter, Adapter):
        return type(adapter).__name__.lower(), adapter
    refusals = []
    for name in discovery.installed("adapter") if adapter is None else [adapter]:
        loaded = discovery.load("adapter", name)()
        refusal = loaded.refuses(source) if isinstance(source, Path) else _refuses_object(loaded, source)
        if refusal is None:
            return name, loaded
        refusals.append(f"\n  {name}: {refusal}")
    what = source if isinstance(source, Path) else type(source).__qualname__
    asked = "no installed adapter takes" if adapter is None else "the adapter asked for does not take"
    raise PlanError([f"{asked} {what}:{''.join(refusals) or ' none is installed'}"])


def _format_of(folder: Path) -> tuple[CheckpointFormat, Checkpoint, dict[str, Any]] | None:
    """The format that reads a quantized folder, its tensors and its configuration; nothing for a float one."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # the adapter reads this file too, and raises its error
    if not isinstance(config, dict):
        return None
    given = config.get("quantization_config") or {}
    if not isinstance(given, dict):
        raise CheckpointError(
            f"{folder / 'config.json'}: quantization_config is {str(given)[:60]!r}, not an object; correct it"
        )
    method = given.get("quant_method") or ("a method without a name" if given else None)
    method = method or next((path.name for path in sorted(folder.glob(DESCRIPTIONS))), None)
    if method is None:
        return None
    for name in discovery.installed("format"):
        found = load_format(name)
        if found.recognises(folder, config):
            return found, Checkpoint(folder), config
    raise PlanError([f"{folder} is quantized as '{method}', which no installed format reads"])


def _refuses_object(adapter: Adapter, model: Any) -> str | None:
    names = {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}
    return None if names & set(adapter.handles) else f"handles {', '.join(adapter.handles) or 'no live objects'}"


def plan(
    model: Source,
    recipe: Recipe | str | Path,
    *,
    format: str | None = None,
    device: str = "cpu",
    adapter: str | Adapter | None = None,
    calibration: Any = None,
    samples: int | None = None,
    seq_len: int | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda stage, block, blocks: None,
) -> Plan:
    """What ``quantize`` would do, layer by layer, with reasons; reads no weights, unless the recipe leaves the choice
    of schemes to be measured: then the calibration data is needed here too.

    Raises ``PlanError`` with every problem when it cannot be done.
    """
    resolved = resolve_recipe(recipe)
    if format is not None:
        resolved = resolved.model_copy(update={"format": format})
    _find_data(resolved, calibration)
    opened = open_source(model, device, adapter, trust_remote_code)
    opened.model.files()  # raises CheckpointError for a file that cannot be copied
    if any(numbers.online is not None for numbers in opened.numbers.values()):
        raise PlanError([f"{model} has transforms that are computed at run time; quantize the float model instead"])
    source = _quantized_source(model, opened)
    allocator = allocation.allocator_of(resolved)
    if allocator is None:
        return replace(make(resolved, opened.model, opened.adapter, device), source=source)
    tokens = _tokens(resolved, opened.model, calibration, samples, seq_len, tokenizer, "choosing schemes needs")
    with opened.model.settings(resolved.calibration.exact):
        chosen = allocation.allocate(resolved, allocator, opened.model, tokens, progress)
    made = make(chosen.recipe, opened.model, opened.adapter, device, chosen.reasons, [chosen.summary])
    return replace(made, source=source)


def quantize(
    model: Source,
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    calibration: Any = None,
    samples: int | None = None,
    seq_len: int | None = None,
    tokenizer: Any = None,
    format: str | None = None,
    device: str = "cpu",
    adapter: str | Adapter | None = None,
    restart: bool = False,
    trust_remote_code: bool = False,
    plugins: Iterable[Any] = (),
    progress: Progress = lambda stage, block, blocks: None,
) -> Report:
    """Quantize a model into a folder that a serving engine loads.

    model: a checkpoint folder or a live model. recipe: a preset's name, a file, or a ``Recipe``.
    output: an empty or new folder, or an unfinished run of the same recipe and model, which is resumed.
    calibration: see ``gs_core.calibration.load``; replaces the recipe's, as ``samples`` and ``seq_len`` do.
    tokenizer: replaces the model's own: a tokenizer of transformers or tokenizers, or a callable ``str → ids``.
    restart: first remove the files of an earlier run in ``output``. plugins: wrappers around every stage.
    trust_remote_code: run Python code from the model folder (docs/security.md).

    Raises a ``GoldenStickError`` whose message says what to do; blocks that were finished stay finished.
    """
    started = time.monotonic()
    if not str(output).strip():
        raise PlanError(["the path of the output is empty; give a folder to write to"])
    check_output(Path(output), Path(model) if isinstance(model, str | Path) else None, restart)
    made = plan(
        model,
        recipe,
        format=format,
        device=device,
        adapter=adapter,
        calibration=calibration,
        samples=samples,
        seq_len=seq_len,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    tokens = None
    if made.needs_data:
        tokens = _tokens(made.recipe, made.model, calibration, samples, seq_len, tokenizer, _why_data(made))
    journal = Journal(Path(output), _identity(made, tokens), restart)
    try:
        with made.model.settings(made.recipe.calibration.exact), memory.quick_collections():
            files = pipeline.run(made, journal, tokens, plugins, progress)
        finished = report.write(made, journal, tokens, files, time.monotonic() - started)
        journal.finish()
    except OSError as error:
        raise OutputError(f"writing to {output} failed: {error.strerror or error}") from None
    finally:
        journal.close()
    return finished


def _quantized_source(model: Source, opened: Opened) -> QuantizedSource | None:
    if not opened.numbers and not opened.caches:
        return None
    return QuantizedSource(opened.schemes(), Checkpoint(_model_folder(model)).nbytes)


def _why_data(made: Plan) -> str:
    needing = ", ".join(made.needing_data)
    return f"{needing} needs" if needing else "static activations need"


def _find_data(recipe: Recipe, calibration: Any) -> None:
    """Raise ``PlanError`` if the given calibration data does not exist. Reads no data."""
    source = calibration if calibration is not None else recipe.calibration.data
    if source is not None:
        try:
            calibrating.locate(source)
        except CalibrationError as error:
            raise PlanError([str(error)]) from None


def _tokens(
    recipe: Recipe,
    model: Model,
    calibration: Any,
    samples: int | None,
    seq_len: int | None,
    tokenizer: Any,
    why: str,
) -> np.ndarray:
    asked = recipe.calibration
    source = calibration if calibration is not None else asked.data
    if source is None:
        raise PlanError([f"{why} calibration data: pass `calibration=`, or set calibration.data in the recipe"])
    samples, seq_len = samples or asked.samples, seq_len or asked.seq_len
    limit = model.max_tokens()
    if limit is not None and seq_len > limit:
        raise PlanError([f"calibration with {seq_len} tokens: the model takes at most {limit}; lower `seq_len=`"])
    tokens = calibrating.load(source, samples, seq_len, model if tokenizer is None else tokenizer)
    calibrating.check(tokens, model.vocabulary())
    return tokens


def _identity(made: Plan, tokens: np.ndarray | None) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    return {
        "recipe": made.recipe.model_dump(mode="json"),
        "model": made.model.fingerprint(),
        "calibration": None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest(),
        "plugins": dict(made.versions),
        "adapter": made.adapter,
        "device": made.device,
        "golden-stick-core": version("golden-stick-core"),
        "batch size": calibrating.tokens.TOKENS_PER_BATCH,
    }
