"""An opened network or checkpoint folder."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_core import CalibrationError, LayerInfo, Model
from gs_core.arrays import RawTensor
from gs_core.errors import reason
from gs_core.interfaces import Batch
from gs_core.interfaces.model import ALL
from gs_core.known_folds import Folds
from gs_core.storage import StoredTensor, Tensor, check_link
from gs_mindformers.block import MFBlock
from gs_mindformers.found import Layers
from gs_mindformers.weights import Weights

if TYPE_CHECKING:
    from gs_mindformers.network import Running

NOT_CARRIED = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


@dataclass
class Facts:
    """What a configuration says: its content for config.json, and the sizes that are asked for."""

    content: dict[str, Any] = field(default_factory=dict)
    vocabulary: int = 0
    length: int | None = None


class MFModel(Model):
    """See ``gs_core.Model``. ``running`` gives the network; of a folder it is built when it is first asked for."""

    def __init__(
        self,
        name: str,
        facts: Facts,
        weights: Weights,
        blocks: list[str],
        block_of: Callable[[str], int | None],
        found: Layers,
        running: "Callable[[], Running]",
        folder: Path | None = None,
    ):
        self.name, self.facts, self.weights, self.found, self.folder = name, facts, weights, found, folder
        self.block_of, self.running = block_of, running
        self.folds = Folds()
        self._blocks = blocks
        self._tokenizer: Any = None
        self.layers: list[LayerInfo] = found.infos
        self.kept = found.kept
        self.uncached = "no attention of this network hands keys and values to a PagedAttentionMgr"

    @property
    def blocks(self) -> Sequence[str]:
        return self._blocks

    def block(self, index: int, probe: Batch | None) -> MFBlock:
        return MFBlock(self, index, probe)

    def rest(self) -> Iterator[tuple[str, Tensor]]:
        yield from ((e.source, e.tensor) for e in self.weights if self.block_of(e.parameter) is None)

    def config(self) -> dict[str, Any]:
        return dict(self.facts.content)

    def files(self) -> Sequence[Path]:
        if self.folder is None:
            return []
        found = sorted(
            path
            for path in self.folder.iterdir()
            if path.is_file()
            and path.suffix not in NOT_CARRIED
            and path.name not in ("config.json", "gsq_report.json")
            and not path.name.startswith(".")
            and not path.name.endswith(".index.json")
        )
        for path in found:
            check_link(path, self.folder)
        return found

    def nbytes(self) -> int:
        return self.weights.nbytes

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.facts.content, sort_keys=True).encode())
        files = set()
        for entry in self.weights:
            digest.update(f"{entry.source} {entry.tensor.dtype} {entry.tensor.shape}".encode())
            if isinstance(entry.tensor, StoredTensor):
                files.add(entry.tensor.path)
            else:
                for piece in entry.tensor.chunks():
                    digest.update(piece)
        for path in sorted(files):
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def tokenize(self, text: str) -> np.ndarray:
        if self._tokenizer is None:
            self._tokenizer = self._load_tokenizer()
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def _load_tokenizer(self) -> Any:
        path = None if self.folder is None else self.folder / "tokenizer.json"
        if path is None or not path.is_file():
            raise CalibrationError(
                f"{self.name} has no tokenizer.json; "
                "give a tokenizer (tokenizer= in Python), or token ids (a .npy file or an array)"
            )
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more special
            raise CalibrationError(f"{path}: {reason(error)}") from None

    def vocabulary(self) -> int:
        return self.facts.vocabulary

    def max_tokens(self) -> int | None:
        return self.facts.length

    def logits(
        self, tokens: np.ndarray, last: Mapping[str, RawTensor], windows: slice = ALL, positions: slice = ALL
    ) -> np.ndarray:
        from gs_mindformers.running import flatten, put_down, take_up

        outputs = flatten(take_up(last))
        part = {k: v if k == "length" else v[windows] for k, v in outputs.items()}
        if self._blocks == [""]:
            return part["hidden"][:, positions]
        running = self.running()
        answers = [take_up(put_down(part))] * len(self._blocks)
        return running.runner.end(tokens[windows], answers, running.outside)[:, positions]
