"""What every checkpoint format owes the line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core import numerics
from gs_core.arrays import RawTensor, astype, from_raw, to_raw
from gs_core.errors import CheckpointError
from gs_core.interfaces import CacheInfo, CacheNumbers, Finished, LayerInfo, LayerNumbers, Output, StaticInput
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
from gs_core.stages import Stages, check_hooks, implements
from gs_core.storage import Checkpoint, read_header
from gs_core.testing.cache import CACHES, HEADS, SIZE, cache_info, each_cache
from gs_core.testing.suite import SCHEMES, Suite, each_scheme, plugin, sentence
from gs_schemas import QuantizationArgs, QuantizationScheme

SHAPES = {"blocks.0.q": (64, 96), "blocks.1.down": (96, 64)}
NAME = "tested"


@dataclass
class Written:
    """A folder and what went into it."""

    folder: Path
    tensors: dict[str, QuantizedTensor]
    inputs: dict[str, StaticInput | None]
    floats: dict[str, RawTensor]
    files: list[str]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))


def _key_maps() -> dict[str, LinearMap]:
    two = np.array([[1, 1], [1, -1]], np.float32) / np.float32(2**0.5)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0].astype(np.float32)
    stretched = turned * np.linspace(0.5, 2, SIZE, dtype=np.float32)
    return {
        "hadamard": LinearMap((two,) * (SIZE.bit_length() - 1), orthogonal=True),
        "rotation": LinearMap((turned,), orthogonal=True),
        "kronecker": LinearMap((stretched,)),
    }


KEY_MAPS = _key_maps()
"""A map of a head's keys of each kind."""


class FormatSuite(Suite):
    """Tests of a checkpoint format on two blocks of one layer each, under every scheme that it does not refuse.

    The fixture is its installed name, its class, or an instance::

        class TestMine(FormatSuite):
            @pytest.fixture
            def checkpoint_format(self):
                return "mine"
    """

    dtype: ClassVar[str] = "bfloat16"
    """What the weights were stored in before, and so what scales are stored in."""

    @pytest.fixture
    def checkpoint_format(self) -> Any:
        raise NotImplementedError("give the suite a fixture `checkpoint_format`: a name, a class or an instance")

    @pytest.fixture
    def tested(self, checkpoint_format: Any) -> Any:
        return plugin("format", checkpoint_format)

    def claims(self, tested: Any, schemes: dict[str, QuantizationScheme]) -> bool:
        """Whether it holds layers of these schemes side by side."""
        infos = [LayerInfo(name, index, SHAPES[name], f"{name}.input", self.dtype) for index, name in enumerate(SHAPES)]
        refusals = [tested.unsupported(info, schemes[info.name]) for info in infos]
        assert all(refusal is None or sentence(refusal) for refusal in refusals), "a refusal says why"
        conflicts = tested.conflicts(schemes)
        assert all(sentence(conflict) for conflict in conflicts), "a conflict says what conflicts"
        return not any(refusals) and not conflicts

    @pytest.fixture
    def claimed(self, tested: Any) -> list[QuantizationScheme]:
        return [scheme for scheme in SCHEMES.values() if self.claims(tested, dict.fromkeys(SHAPES, scheme))]

    def write(
        self,
        tested: Any,
        schemes: dict[str, QuantizationScheme],
        folder: Path,
        dtype: str = "",
        caches: Mapping[CacheInfo, CacheNumbers] | None = None,
    ) -> Written:
        """What the pipeline does with a format."""
        caches = caches or {}
        folder.mkdir()
        stages, random = Stages({NAME: tested}), np.random.default_rng(0)
        written = Written(folder / "out", {}, {}, {}, [])
        written.folder.mkdir()
        parts: list[list[tuple[str, Any]]] = []
        for index, (name, shape) in enumerate(SHAPES.items()):
            scheme, info = schemes[name], LayerInfo(name, index, shape, f"{name}.input", dtype or self.dtype)
            assert scheme.weights is not None
            weight = random.standard_normal(shape).astype(np.float32)
            tensor = numerics.quantize_weight(weight, scheme.weights, dtype or self.dtype)
            inputs = static_input(scheme, dtype or self.dtype)
            packed = stages.pack(NAME, tensor, inputs, tested.layout(scheme), None, info)
            norm = to_raw(astype(random.standard_normal(7).astype(np.float32), self.dtype))
            parts.append([(f"{name}.{suffix}", array) for suffix, array in packed.items()])
            parts[-1].append((f"{name}_norm.weight", norm))
            written.tensors[name], written.inputs[name] = tensor, inputs
            written.floats[f"{name}_norm.weight"] = norm
        for part, (cache, found) in zip(parts, caches.items(), strict=False):
            part += tested.pack_cache(cache, found).items()
        head = to_raw(astype(random.standard_normal((8, 3)).astype(np.float32), self.dtype))
        written.floats["lm_head.weight"] = head
        parts.append([("lm_head.weight", head)])
        for number, tensors in enumerate(parts):
            written.files += stages.export(NAME, Output(written.folder, number, len(parts), tensors))
        shards = {
            file: {n: t.nbytes for n, t in read_header(written.folder / file).items()}
            for file in written.files
            if file.endswith((".safetensors", ".ckpt"))
        }
        tokenizer = folder / "tokenizer.json"
        tokenizer.write_text("{}")
        quantized = {cache: found.args for cache, found in caches.items()}
        keys = {cache.name: found.online.describe() for cache, found in caches.items() if found.online is not None}
        final = Finished({"model_type": "toy"}, schemes, ["lm_head"], [tokenizer], shards, {}, quantized, keys=keys)
        written.files += stages.export(NAME, Output(written.folder, len(parts), len(parts), final=final))
        return written

    def check(self, tested: Any, written: Written) -> None:
        """Read a folder back: every weight is, to the bit, what its tensor stands for."""
        checkpoint, numbers = tested.read(Checkpoint(written.folder), written.config)
        assert sorted(numbers) == sorted(written.tensors)
        for name, tensor in written.tensors.items():
            got = astype(from_raw(checkpoint[f"{name}.weight"].read()), "float32")
            assert np.array_equal(got, numerics.dequantize(tensor)), name
            self.check_inputs(numbers[name], written.inputs[name])
        assert set(checkpoint.tensors) == {*written.floats, *(f"{name}.weight" for name in written.tensors)}

    def check_inputs(self, numbers: LayerNumbers, wanted: StaticInput | None) -> None:
        if wanted is None:
            assert numbers.inputs is None
            return
        assert numbers.inputs is not None
        assert astype(numbers.inputs.scale, "float32") == astype(wanted.scale, "float32")
        assert numbers.inputs.zero_point == wanted.zero_point

    def silence(self, tested: Any, folder: Path) -> dict[str, Any]:
        """A config that names the format and says nothing of any layer. A format that says it in a file of its own
        empties that file."""
        return {"quantization_config": {"quant_method": tested.quant_method}}

    # --- what it looks like ----------------------------------------------------------------------------------

    def test_hooks_are_well_formed(self, tested: Any) -> None:
        check_hooks(tested)
        assert implements(tested, "pack")
        assert implements(tested, "export")
        assert tested.quant_method

    def test_it_holds_some_scheme(self, claimed: list[QuantizationScheme]) -> None:
        assert claimed, f"it refuses all of {', '.join(SCHEMES)}"

    # --- what it writes --------------------------------------------------------------------------------------

    @each_scheme
    def test_every_claimed_scheme_comes_back_bit_for_bit(
        self, tested: Any, scheme: QuantizationScheme, tmp_path: Path
    ) -> None:
        schemes = dict.fromkeys(SHAPES, scheme)
        if not self.claims(tested, schemes):
            return
        written = self.write(tested, schemes, tmp_path / "model")
        self.check(tested, written)
        _, numbers = tested.read(Checkpoint(written.folder), written.config)
        for layer in numbers.values():
            assert essence(layer.scheme) == essence(scheme)

    @each_cache
    def test_every_claimed_cache_comes_back(
        self, tested: Any, claimed: list[QuantizationScheme], args: QuantizationArgs, tmp_path: Path
    ) -> None:
        infos = [cache_info(f"blocks.{block}.self_attn", self.dtype, ("key", "value")) for block in range(2)]
        refusals = {tested.unsupported_cache(info, args) for info in infos}
        assert all(refusal is None or sentence(refusal) for refusal in refusals), "a refusal says why"
        if any(refusals):
            return
        caches = {info: CacheNumbers(args, static_cache(info, args, self.dtype)) for info in infos}
        written = self.write(tested, dict.fromkeys(SHAPES, claimed[0]), tmp_path / "model", caches=caches)
        self.check(tested, written)
        found = tested.read_caches(Checkpoint(written.folder), written.config, infos)
        assert list(found) == [info.name for info in infos]
        for info, wanted in caches.items():
            got = found[info.name]
            fields = ("format", "granularity", "group_size", "symmetric", "dynamic")
            assert [getattr(got.args, f) for f in fields] == [getattr(args, f) for f in fields]
            assert list(got.static) == list(wanted.static)
            for kind, static in wanted.static.items():
                read = got.static[kind]
                assert (read is None) == (static is None)
                if read is not None and static is not None:
                    assert np.array_equal(astype(read.scale, "float32"), astype(static.scale, "float32"))
                    assert str(read.zero_point) == str(static.zero_point)

    @pytest.mark.parametrize("kind", KEY_MAPS)
    def test_every_claimed_map_of_keys_comes_back(
        self, tested: Any, claimed: list[QuantizationScheme], kind: str, tmp_path: Path
    ) -> None:
        """One cache's keys are mapped, the other's are not."""
        mapped, plain = (cache_info(f"blocks.{block}.self_attn", self.dtype, ("key", "value")) for block in range(2))
        if kind not in tested.holds_keys:
            return
        held = [args for args in CACHES.values() if not tested.unsupported_cache(mapped, args)]
        assert held, "it holds maps of keys, and no keys"
        caches = {
            info: CacheNumbers(held[0], static_cache(info, held[0], self.dtype), online)
            for info, online in ((mapped, KEY_MAPS[kind]), (plain, None))
        }
        written = self.write(tested, dict.fromkeys(SHAPES, claimed[0]), tmp_path / "model", caches=caches)
        self.check(tested, written)
        found = tested.read_caches(Checkpoint(written.folder), written.config, [mapped, plain])
        assert found[plain.name].online is None
        wanted, got = KEY_MAPS[kind].dense(HEADS * SIZE), found[mapped.name].online.dense(HEADS * SIZE)
        assert np.allclose(got, wanted, atol=1e-2 * np.abs(wanted).max()), "as near as the model's dtype holds it"

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_scales_of_every_dtype(
        self, tested: Any, claimed: list[QuantizationScheme], dtype: str, tmp_path: Path
    ) -> None:
        self.check(tested, self.write(tested, dict.fromkeys(SHAPES, claimed[0]), tmp_path / "model", dtype))

    def test_layers_of_two_schemes(self, tested: Any, claimed: list[QuantizationScheme], tmp_path: Path) -> None:
        for number, scheme in enumerate(claimed[1:]):
            schemes = dict(zip(SHAPES, (claimed[0], scheme), strict=True))
            if self.claims(tested, schemes):
                self.check(tested, self.write(tested, schemes, tmp_path / str(number)))

    def test_the_folder_is_a_checkpoint(self, tested: Any, claimed: list[QuantizationScheme], tmp_path: Path) -> None:
        written = self.write(tested, dict.fromkeys(SHAPES, claimed[0]), tmp_path / "model")
        assert sorted(written.files) == sorted(path.name for path in written.folder.iterdir())
        assert (written.folder / "tokenizer.json").read_text() == "{}", "other files are carried over"
        assert written.config["model_type"] == "toy"
        assert tested.recognises(written.folder, written.config)
        checkpoint = Checkpoint(written.folder)
        for name, tensor in written.floats.items():
            raw = checkpoint[name].read()
            assert (raw.dtype, raw.shape, raw.data.tobytes()) == (tensor.dtype, tensor.shape, tensor.data.tobytes())

    def test_written_again_it_has_the_same_bytes(
        self, tested: Any, claimed: list[QuantizationScheme], tmp_path: Path
    ) -> None:
        """A run that was killed writes its last part again."""
        once, again = (self.write(tested, dict.fromkeys(SHAPES, claimed[0]), tmp_path / name) for name in "ab")
        for file in once.files:
            assert (once.folder / file).read_bytes() == (again.folder / file).read_bytes(), file

    def test_a_config_that_says_nothing_is_refused(
        self, tested: Any, claimed: list[QuantizationScheme], tmp_path: Path
    ) -> None:
        written = self.write(tested, dict.fromkeys(SHAPES, claimed[0]), tmp_path / "model")
        config = self.silence(tested, written.folder)
        with pytest.raises(CheckpointError):
            tested.read(Checkpoint(written.folder), config)


def static_input(scheme: QuantizationScheme, dtype: str) -> StaticInput | None:
    if scheme.inputs is None or scheme.inputs.dynamic:
        return None
    zero_point = None if scheme.inputs.symmetric else np.array([-3.0], np.float32)
    return StaticInput(astype(np.array([0.037], np.float32), dtype), zero_point)


def static_cache(info: CacheInfo, args: QuantizationArgs, dtype: str) -> dict[Any, StaticInput | None]:
    """Other parameters for each kind of site; none for a dynamic cache."""
    if args.dynamic:
        return {site.kind: None for site in info.sites}
    elements = {"tensor": 1, "head": HEADS, "channel": HEADS * SIZE}[args.granularity]
    random = np.random.default_rng(list(info.name.encode()))
    return {
        site.kind: StaticInput(
            astype(random.uniform(0.01, 0.1, elements).astype(np.float32), dtype),
            None if args.symmetric else random.integers(-9, 9, elements).astype(np.float32),
        )
        for site in info.sites
    }


def essence(scheme: QuantizationScheme) -> list[Any]:
    """What a reader must know of a scheme; how its scales were found is gone."""
    fields = ("bits", "granularity", "group_size", "block_size", "symmetric", "dynamic")
    return [args and [getattr(args, field) for field in fields] for args in (scheme.weights, scheme.inputs)]
