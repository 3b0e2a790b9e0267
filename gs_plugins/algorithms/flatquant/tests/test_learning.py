"""What is learned of a block: it helps, it is what the transforms say, and it can be repeated and kept."""

from dataclasses import replace

import pytest
import torch

from gs_core import ChannelScale, FoldTransform, LayerInfo, QuantizationArgs, SiteTransform, numerics
from gs_core.comparing import channel_error
from gs_core.verification import apply_verified
from gs_core.watching import fake_quantizer
from gs_flatquant import FlatQuant, Options
from gs_flatquant.building import build
from gs_flatquant.learning import loss
from gs_flatquant.mapped import clip_start, smoothquant_style
from gs_schemas import QuantizationScheme, SchemaError, validate

W4 = QuantizationArgs(format="int4", granularity="channel")
QUICK = {"epochs": 8, "cali_bsz": 2}


def told(facts):
    return lambda **more: facts.update(more)


def smoothed(toy, **options):
    block, layers, observed, data = toy()
    facts, algorithm = {}, FlatQuant(Options(**QUICK | options))
    return algorithm, block, algorithm.smooth(block, layers, observed, data, told(facts)), facts, data


def output_error(toy, algorithm):
    """Of the block's output with quantized weights and activations, as the line computes it, relative."""
    block, layers, observed, data = toy()
    transforms = algorithm.smooth(block, layers, observed, data, told({})) if algorithm.options.epochs else []
    for transform in transforms:
        block.apply(transform)
    weights = {name: numerics.dequantize(t) for name, t in algorithm.quantize(layers).items()}
    schemes = {layer.site: (layer.scheme, None) for layer in layers}
    got = block.run(*data.batches[1], fake_quantizer(schemes, online=block.online), weights)["hidden"].detach()
    return channel_error(torch.asarray(toy()[0].run(*data.batches[1])["hidden"]), got)


@pytest.mark.parametrize("options", [{}, {"direct_inv": True}, {"lwc": False}, {"lac": True}])
def test_learning_flattens(toy, options):
    """Against rounding to nearest, activations too, on channels thirty times as large as their neighbours."""
    plain = output_error(toy, FlatQuant(Options(epochs=0)))
    assert output_error(toy, FlatQuant(Options(**QUICK | options))) < 0.8 * plain


def test_the_loss_curve_falls_and_is_reported(toy):
    facts = smoothed(toy)[3]
    assert len(facts["loss"]) == 16, "every other of 32 steps"
    assert facts["last"] < 0.8 * facts["loss"][0]


def test_the_float_block_is_left_as_it_was(toy):
    _, block, transforms, _, data = smoothed(toy)
    verified = apply_verified(block, transforms, data.batches[0])
    applied, dropped = verified.applied, verified.dropped
    assert not dropped
    assert len(applied) == len(transforms)


def test_each_site_gets_its_map(toy):
    """Heads are mixed online, each head's values where they are made; diagonals fold into norms and up_proj."""
    _, block, transforms, _, _ = smoothed(toy, epochs=1)
    short = [(type(t).__name__, t.where.replace(f"{block.name}.", "")) for t in transforms]
    folds = [("ChannelScale", w) for w in ("attention_norm → q.input", "mlp_norm → gate.input", "up → down.input")]
    online = [("SiteTransform", w) for w in ("q.input", "o.input", "gate.input", "down.input")]
    assert sorted(short) == sorted([*folds, ("FoldTransform", "v → o.input"), *online])
    sizes = {t.site.split(".")[-2]: t.map.sizes for t in transforms if isinstance(t, SiteTransform)}
    heads = block.model.shape
    assert sizes == {"q": (8, 8), "o": (heads.heads, heads.head), "gate": (8, 8), "down": (8, 12)}
    assert isinstance(transforms[0], ChannelScale), "what folds comes first"


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"o_trans": False}, "o.input"), ({"down_trans": False}, "down.input"), ({"add_diag": False}, "norm")],
)
def test_options_leave_maps_out(toy, options, missing):
    _, _, transforms, _, _ = smoothed(toy, epochs=0, **options)
    assert transforms
    assert not any(missing in t.where for t in transforms)


def test_a_site_whose_map_the_checkpoint_could_not_say_gets_another_or_none(toy):
    """Attention's output layer gets a pair like others where its heads cannot be mixed."""
    block, layers, observed, data = toy()
    heads = block.model.shape.heads

    def refusal(transform):
        return {8: None, heads: "no heads"}[transform.map.sizes[0]] if transform.map.sizes != (8, 12) else "no 8 · 12"

    data = replace(data, refusal=refusal)
    *transforms, dropped = FlatQuant(Options(epochs=0)).smooth(block, layers, observed, data, told({}))
    sizes = {t.site.split(".")[-2]: t.map.sizes for t in transforms if isinstance(t, SiteTransform)}
    assert sizes == {"q": (8, 8), "o": (8, 8), "gate": (8, 8)}
    assert not any(isinstance(t, FoldTransform) for t in transforms)
    assert refusal(dropped) == "no 8 · 12", "it is left to the line to say so"


def test_what_is_kept_of_activations_is_learned_with_lac(toy):
    for epochs, expected in ((0, pytest.approx(0.982, abs=1e-3)), (8, pytest.approx(0.95, abs=0.05))):
        transforms = smoothed(toy, lac=True, epochs=epochs)[2]
        keeps = [t.map.keep for t in transforms if isinstance(t, SiteTransform)]
        assert keeps == [expected] * 4
    assert len(set(keeps)) == 4


def test_inputs_that_devices_divide_are_mapped_on_each(toy):
    """What a norm returns is whole on all of them; heads and the inputs of ``down`` are not."""
    _, block, transforms, _, _ = smoothed(toy, epochs=0, tensor_parallel=2)
    sizes = {t.site.split(".")[-2]: t.map.sizes for t in transforms if isinstance(t, SiteTransform)}
    heads = block.model.shape
    assert sizes == {"q": (8, 8), "o": (heads.heads // 2, heads.head), "gate": (8, 8), "down": (6, 8)}


def test_maps_have_the_values_that_engines_keep(toy):
    """They round them to the model's dtype; the inverses that weights go through are those of the rounded ones."""
    block, layers, observed, data = toy()
    for layer in layers:
        layer.info = replace(layer.info, dtype="bfloat16")
    transforms = FlatQuant(Options(epochs=0)).smooth(block, layers, observed, data, told({}))
    factors = [f for t in transforms if isinstance(t, SiteTransform) for f in t.map.factors if not isinstance(f, int)]
    assert len(factors) == 7
    assert all(torch.equal(f, f.bfloat16().float()) for f in factors)
    assert not apply_verified(block, transforms, data.batches[0]).dropped


def test_only_clipping_learns_without_cali_trans(toy):
    (_, _, learned, _, _), (_, _, start, _, _) = smoothed(toy, cali_trans=False), smoothed(toy, epochs=0)
    for one, other in zip(learned, start, strict=True):
        assert type(one) is type(other)
        if isinstance(one, FoldTransform | SiteTransform):
            assert all(
                torch.equal(a, b)
                for a, b in zip(one.map.factors, other.map.factors, strict=True)
                if not isinstance(a, int)
            )


def test_clipping_starts_at_982_thousandths(toy):
    assert clip_start(W4) == pytest.approx(4.0)
    assert torch.sigmoid(torch.tensor(4.0)).item() == pytest.approx(0.982, abs=1e-3)
    eight = clip_start(QuantizationArgs(format="int8", granularity="channel"))
    lost = 1 - torch.sigmoid(torch.tensor(eight, dtype=torch.float64)).item()
    assert lost * 255 == pytest.approx((1 - 0.98201) * 15, rel=1e-3), "the same part of a step"
    algorithm, *_ = smoothed(toy, epochs=0)
    assert all(torch.allclose(clip, torch.tensor(4.0)) for clip in algorithm._clips.values())
    assert smoothed(toy, epochs=0, lwc=False)[0]._clips == {}


def test_the_scale_to_start_from():
    weights = [torch.tensor([[1.0, -4.0]]), torch.tensor([[2.0, 0.0]])]
    found = smoothquant_style(weights, torch.tensor([16.0, 1e-9]), 0.5)
    torch.testing.assert_close(found, torch.tensor([2**0.5 / 4, 2 / 1e-5**0.5]))


def test_what_is_rounded_is_what_was_learned(toy):
    """The weights that are stored, seen through the transforms, are those that the loss was computed with. Activations
    stay in float here: where they are rounded, the order of additions decides some codes, and those what follows."""
    block, layers, observed, data = toy()
    for layer in layers:
        layer.scheme = QuantizationScheme(weights=W4)
    algorithm = FlatQuant(Options(**QUICK))
    mapped, refused = build(block, layers, observed, algorithm.options, data.refusal)
    assert refused == []
    with torch.no_grad():
        computed = mapped.compute()
        learned = float(loss(mapped, computed, data, (0, slice(0, 4))))
    algorithm._clips = mapped.clips
    for transform in mapped.transforms():
        block.apply(transform)
    weights = {name: numerics.dequantize(t) for name, t in algorithm.quantize(layers).items()}
    hidden = block.run(*data.batches[0], None, weights)["hidden"]
    wanted = toy()[0].run(*data.batches[0])["hidden"]
    stored = float(((hidden - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())
    assert stored == pytest.approx(learned, rel=1e-3)


def test_a_seed_decides_everything(toy):
    (_, _, one, facts, _), (_, _, same, again, _) = (smoothed(toy) for _ in range(2))
    assert facts == again
    for a, b in zip(one, same, strict=True):
        if isinstance(a, SiteTransform):
            assert torch.equal(a.map.factors[0], b.map.factors[0])
    assert smoothed(toy, seed=1)[3] != facts


def test_matrices_are_saved_and_taken_up_again(toy, tmp_path):
    saved, _, transforms, _, _ = smoothed(toy, epochs=1, lac=True, save_matrices=str(tmp_path / "flat"))
    assert [p.name for p in (tmp_path / "flat").iterdir()] == ["flat_matrices-00000.safetensors"]
    loaded, _, again, facts, _ = smoothed(toy, load_matrices=str(tmp_path / "flat"))
    assert facts == {}, "nothing was learned"
    assert {t.where for t in again} == {t.where for t in transforms}
    by_place = {(type(t), t.where): t for t in again}
    for transform in transforms:
        other = by_place[type(transform), transform.where]
        if isinstance(transform, ChannelScale):
            assert torch.equal(transform.scale, other.scale)
        else:
            assert transform.map.keep == pytest.approx(other.map.keep, rel=1e-6)
            for a, b in zip(transform.map.factors, other.map.factors, strict=True):
                assert a == b if isinstance(a, int) else torch.equal(a, b)
    assert all(torch.equal(clip, loaded._clips[layer]) for layer, clip in saved._clips.items())


# --- planning ------------------------------------------------------------------------------------------------


def layer(features):
    return LayerInfo("layer", 0, (64, features), "site", "bfloat16")


def test_what_it_cannot_do_is_said_while_planning():
    integers = QuantizationScheme(weights=QuantizationArgs(format="int4", granularity="channel"))
    floats = QuantizationScheme(weights=QuantizationArgs(format="fp8_e4m3", granularity="channel"))
    assert FlatQuant().unsupported(layer(96), integers) is None
    assert "use hadamard" in FlatQuant().unsupported(layer(96), floats)
    assert "max_factor" in FlatQuant(Options(max_factor=16)).unsupported(layer(1009), integers)
    assert "divided among 5 devices" in FlatQuant(Options(tensor_parallel=5)).unsupported(layer(96), integers)
    assert list(FlatQuant().leaves_online(layer(96), 96)) == ["kronecker"]
    assert FlatQuant().needs(integers).gradient
    assert not any(FlatQuant(o).needs(integers).gradient for o in (Options(epochs=0), Options(load_matrices="flat")))
    assert list(FlatQuant(Options(lac=True)).leaves_online(layer(96), 96)) == ["clipped"]


def test_blocks_are_remarked_on():
    assert FlatQuant().remarks([layer(96)]) == []
    (remark,) = FlatQuant(Options(max_factor=8)).remarks([layer(96)])
    assert remark.startswith("96 features are mapped in blocks of 48, 6 · 8")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": -1}, "epochs: got -1"), ({"lacc": True}, "lacc: no such field")],
)
def test_an_option_that_cannot_be_is_an_error_that_names_it(options, message):
    with pytest.raises(SchemaError, match=message):
        validate(Options, options, "flatquant")
