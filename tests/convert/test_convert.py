"""Every architecture in every type, there and back: the same weights, the same logits, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.convert import convert, source, write_checkpoint
from bitnet.convert.folder import write_folder
from bitnet.convert.verify import verify
from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.models.names import spellings
from bitnet.models.pooling import read_pooling
from bitnet.quant.tensor import DenseTensor, TernaryTensor

IDS = list(range(3, 40))
QWEN3 = tiny.LLAMA | tiny.WIDE | {"model_type": "qwen3"}
GEMMA3 = QWEN3 | {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": None,
    "num_hidden_layers": 7,
    "sliding_window": 5,
    "query_pre_attn_scalar": 48,
    "rope_local_base_freq": 5000.0,
    "quantization_config": None,
}
NORMS = {"quant_method": "bitnet", "use_rms_norm": True, "rms_norm_eps": 1e-3}
PATTERN = ["full_attention", "sliding_attention"]
VARIANTS = tiny.VARIANTS | {
    "qwen3": QWEN3,
    "qwen3-norms": QWEN3 | {"quantization_config": NORMS},
    "qwen3-kept": QWEN3 | {"quantization_config": NORMS | {"modules_to_not_convert": ["down_proj"]}},
    "bitnet-kept": tiny.BITNET | tiny.WIDE | {"quantization_config": {"modules_to_not_convert": ["1.mlp.up_proj"]}},
    "gemma3": GEMMA3,
    "gemma3-pattern": GEMMA3 | {"num_hidden_layers": 2, "layer_types": PATTERN},
    "gemma3-norms": GEMMA3 | {"quantization_config": NORMS | {"rms_norm_eps": 1e-5}, "num_hidden_layers": 2},
}
KINDS = ("i2_s", "tq2_0", "tq1_0", "q2_0", "pq2_0", "ptq1_0", "q1_0", "iq1_bn", "iq2_bn")
EVERY_KIND = ("bitnet-relu2", "bitnet-silu", "llama", "qwen3", "gemma3-pattern")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the rows of tiny matrices go through in many blocks as well."""
    monkeypatch.setattr(source, "BLOCK", 5000)


def checkpoint(name: str, binary: bool = False) -> tiny.Synthetic:
    """binary: without zeros."""
    made = tiny.Synthetic(VARIANTS[name])
    kept = (VARIANTS[name].get("quantization_config") or {}).get("modules_to_not_convert", [])
    for spelled, weight in list(made.weights.items()):
        if isinstance(weight, TernaryTensor):
            scale = weight.scales.astype(np.float16).astype(np.float32)
            codes = np.where(weight.codes == 0, np.int8(1), weight.codes) if binary else weight.codes
            made.weights[spelled] = TernaryTensor(codes, scale)
            if any(each in spelled for each in kept):
                random = np.random.default_rng(len(spelled))
                made.weights[spelled] = DenseTensor(random.normal(0, 0.3, weight.shape).astype(np.float16), "F16")
                made.weights.pop(spelled.replace("_proj.weight", "_proj.norm.weight"), None)
        elif made.architecture == "gemma3_text" and weight.data.ndim == 1:
            made.weights[spelled] = DenseTensor(np.round(weight.data * 64) / 64 - np.float32(1))
    return made


def folder(name: str, path: Path, binary: bool = False) -> Path:
    write_folder(checkpoint(name, binary), path, tokenizer=tiny.tokenizer())
    return path


def stored(path: Path) -> dict[str, Any]:
    """Every tensor's values and type."""
    with formats.open(path) as opened:
        return {n: (i.dtype, opened.read(n).dequantize().tobytes()) for n, i in opened.tensors().items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_is_the_model_to_the_bit(name: str, tmp_path: Path) -> None:
    expected = tiny.logits(tiny.load(checkpoint(name)), IDS)
    np.testing.assert_array_equal(tiny.logits(tiny.load(folder(name, tmp_path / "hf")), IDS), expected)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in VARIANTS for k in (KINDS if n in EVERY_KIND else KINDS[:2])],
)
def test_a_folder_comes_back_from_every_type(name: str, kind: str, tmp_path: Path) -> None:
    hf = folder(name, tmp_path / "hf", binary=kind == "q1_0")
    done = convert(hf, tmp_path / "m.gguf", weights=kind)
    assert done.lossless and kind.upper() in done.types, done.notes
    assert convert(tmp_path / "m.gguf", tmp_path / "back").lossless
    assert stored(tmp_path / "back") == stored(hf)
    before, after = (tiny.logits(tiny.load(each), IDS) for each in (hf, tmp_path / "m.gguf"))
    if "llama" in name:  # the rows of q and k are in another order, and with them the sum of each attention score
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)
    else:
        np.testing.assert_array_equal(after, before)
    back = tiny.logits(tiny.load(tmp_path / "back"), IDS)
    np.testing.assert_array_equal(back, before)


@pytest.mark.parametrize("masters", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("config", [tiny.BITNET, tiny.LLAMA])
def test_masters_in_blocks_are_rounded_as_loading_rounds_them(config: Any, masters: str, tmp_path: Path) -> None:
    made, random = tiny.Synthetic(config | {"num_hidden_layers": 1}), np.random.default_rng(4)
    for name, weight in made.weights.items():
        if name.endswith("_proj.weight"):
            values = random.normal(0, 0.02, weight.shape).astype(np.float32)
            if "o_proj" in name:  # ternary already: absmean would shrink its scale
                values = np.sign(values) * np.float32(0.5) * (random.random(weight.shape) < 0.6).astype(np.float32)
            if masters == "BF16":
                made.weights[name] = DenseTensor((values.view(np.uint32) >> 16).astype(np.uint16), "BF16")
            else:
                made.weights[name] = DenseTensor(values.astype(np.float16 if masters == "F16" else np.float32), masters)
    expected = tiny.load(made).weights
    tiny.convert(made, tmp_path / "m.gguf", weights="i2_s", architecture=None)
    write_folder(made, tmp_path / "hf", tokenizer=tiny.tokenizer())
    found = tiny.load(tmp_path / "hf").weights
    for name in expected:
        if name.endswith("_proj"):
            np.testing.assert_array_equal(found[name].codes, expected[name].codes)
            assert found[name].scales == expected[name].scales
    with formats.open(tmp_path / "m.gguf") as opened:
        tensor = opened.read("blk.0.ffn_up.weight")
    np.testing.assert_array_equal(tensor.codes, expected["layers.0.mlp.up_proj"].codes)


def test_master_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    made = tiny.Synthetic(tiny.BITNET)
    weight = made.weights["model.layers.1.mlp.down_proj.weight"].dequantize()
    weight[60, 5] = np.nan
    made.weights["model.layers.1.mlp.down_proj.weight"] = DenseTensor(weight)
    with pytest.raises(FormatError, match="down_proj.weight holds numbers that are not finite"):
        tiny.convert(made, tmp_path / "m.gguf", weights="i2_s")
    assert not list(tmp_path.iterdir())


def grouped(group: int) -> tiny.Synthetic:
    made, random = tiny.Synthetic(QWEN3), np.random.default_rng(2)
    for name, weight in made.weights.items():
        if name.endswith("_proj.weight"):
            n, k = weight.shape
            scales = random.uniform(0.1, 1, (n, k // group)).astype(np.float16).astype(np.float32)
            made.weights[name] = TernaryTensor(weight.codes, scales)
    return made


@pytest.mark.parametrize(
    ("group", "holding"), [(64, ("q2_0",)), (128, ("q2_0", "pq2_0", "ptq1_0")), (256, ("q2_0", "tq2_0", "tq1_0"))]
)
def test_scales_of_groups_go_where_they_fit_and_nowhere_else(group: int, holding: Any, tmp_path: Path) -> None:
    expected = tiny.load(grouped(group)).weights
    for kind in holding:
        tiny.convert(grouped(group), tmp_path / f"{kind}.gguf", weights=kind)
        for name, weight in tiny.load(tmp_path / f"{kind}.gguf").weights.items():
            if name.endswith("_proj"):
                np.testing.assert_array_equal(weight.dequantize(), expected[name].dequantize())
    for kind in {"i2_s", "tq2_0", "tq1_0", "iq2_bn"} - {*holding}:
        with pytest.raises(ParameterError, match=r"(?s)blk\.0.*scale.*Q2_0") as caught:
            tiny.convert(grouped(group), tmp_path / "no.gguf", weights=kind)
        assert all(each.upper() in str(caught.value) for each in holding)
    with pytest.raises(ParameterError, match=r"(?s)transformers takes one.*q2_0"):
        convert(tmp_path / f"{holding[0]}.gguf", tmp_path / "hf")
    assert {each.name for each in tmp_path.iterdir()} == {f"{kind}.gguf" for kind in holding}


def test_a_gguf_file_keeps_what_nobody_asked_to_change(tmp_path: Path) -> None:
    first = tiny.convert(checkpoint("llama-untied"), tmp_path / "a.gguf", weights="tq1_0", embeddings="q6_k")
    done = convert(first, tmp_path / "b.gguf")
    assert done.lossless and stored(tmp_path / "b.gguf") == stored(first)
    done = convert(first, tmp_path / "c.gguf", head="q8_0")
    assert done.notes == ("output.weight was rounded from Q6_K to Q8_0.",)
    before, after = stored(first), stored(tmp_path / "c.gguf")
    assert after["output.weight"][0] == "Q8_0"
    assert {k: v for k, v in after.items() if k != "output.weight"} == {
        k: v for k, v in before.items() if k != "output.weight"
    }


def test_what_is_rounded_is_said(tmp_path: Path) -> None:
    hf = folder("bitnet-relu2", tmp_path / "hf")
    notes = convert(hf, tmp_path / "a.gguf", weights="i2_s", embeddings="q4_k").notes
    assert notes == ("model.embed_tokens.weight was rounded from F16 to Q4_K.",)
    made = tiny.Synthetic(VARIANTS["bitnet-relu2"])  # whose scales no float16 holds
    write_folder(made, tmp_path / "odd", tokenizer=tiny.tokenizer())
    (note,) = convert(tmp_path / "odd", tmp_path / "b.gguf", weights="tq2_0").notes
    assert note.startswith("The scales of 14 ternary tensors were rounded to float16, by ")
    assert convert(tmp_path / "odd", tmp_path / "c.gguf", weights="i2_s").lossless


def test_one_table_cannot_have_two_types(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="output head of this model is its embedding"):
        tiny.convert(checkpoint("llama"), tmp_path / "m.gguf", embeddings="f16", head="q8_0")


def rotated() -> tiny.Synthetic:
    made = checkpoint("qwen3")
    names = [name for name in made.weights if name.endswith("_proj.weight")]
    keys: dict[str, Any] = {
        "version": 1,
        "block_size": 64,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": [256, 512],
        "sign_values": np.random.default_rng(0).choice([-1, 1], 768).tolist(),
        "weight_names": names,
        "inverse_weight_names": ["model.embed_tokens.weight"],
    }
    made.metadata |= {f"prism.hadamard.{key}": value for key, value in keys.items()}
    return made


def test_a_rotation_goes_along_under_the_new_names(tmp_path: Path) -> None:
    expected = tiny.logits(tiny.load(rotated()), IDS)
    path = tiny.convert(rotated(), tmp_path / "m.gguf", weights="pq2_0")
    np.testing.assert_array_equal(tiny.logits(tiny.load(path), IDS), expected)
    convert(path, tmp_path / "again.gguf", weights="tq2_0")
    np.testing.assert_array_equal(tiny.logits(tiny.load(tmp_path / "again.gguf"), IDS), expected)
    with formats.open(path) as opened:
        assert "blk.0.attn_q.weight" in opened.metadata["prism.hadamard.weight_names"]
    with pytest.raises(UnsupportedError, match="rotated"):
        convert(path, tmp_path / "hf")


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_the_pooling_goes_along(pooling: str, tmp_path: Path) -> None:
    hf = folder("qwen3", tmp_path / "hf")
    (hf / "1_Pooling").mkdir()
    names = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    (hf / "1_Pooling" / "config.json").write_text(json.dumps({names[pooling]: True}))
    convert(hf, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    for path in (tmp_path / "m.gguf", tmp_path / "back"):
        with formats.open(path) as opened:
            assert read_pooling(opened) == pooling


def test_large_folders_are_cut_into_shards(tmp_path: Path) -> None:
    write_folder(checkpoint("llama-untied"), tmp_path / "one", tokenizer=tiny.tokenizer())
    write_folder(checkpoint("llama-untied"), tmp_path / "many", tokenizer=tiny.tokenizer(), shard=200_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    assert stored(tmp_path / "many") == stored(tmp_path / "one")
    for each in (tmp_path / "many").glob("*.safetensors"):
        assert each.stat().st_size < 300_000


def test_a_function_may_make_float_projections_ternary(tmp_path: Path) -> None:
    config = {k: v for k, v in VARIANTS["llama"].items() if k != "quantization_config"}
    made, random, seen = tiny.Synthetic(config), np.random.default_rng(1), []
    for name, weight in made.weights.items():
        if name.endswith("_proj.weight"):
            made.weights[name] = DenseTensor(random.normal(0, 1, weight.shape).astype(np.float32))

    def rounding(name: str, weight: Any) -> TernaryTensor:
        seen.append(name)
        return TernaryTensor(np.sign(weight).astype(np.int8), np.abs(weight).mean(axis=1))

    write_checkpoint(made, tmp_path / "m.gguf", weights="tq2_0", tokenizer=tiny.tokenizer(), rounding=rounding)
    assert len(seen) == 14 and "layers.1.mlp.down_proj" in seen
    weight = made.weights[spellings("layers.0.mlp.up_proj", "hf")[0]].data
    with formats.open(tmp_path / "m.gguf") as opened:
        found = opened.read("blk.0.ffn_up.weight")
    np.testing.assert_array_equal(found.codes, np.sign(weight))
    np.testing.assert_allclose(found.scales, np.abs(weight).mean(axis=1), rtol=1e-3)


def test_verifying_finds_the_same_model_and_another_one(tmp_path: Path) -> None:
    hf = folder("bitnet-relu2", tmp_path / "hf")
    convert(hf, tmp_path / "m.gguf")
    same = verify(hf, tmp_path / "m.gguf", backend="reference")
    assert same.passed(lossless=True) and same.difference == same.mean_kl == 0 and same.greedy == same.written > 0
    made = checkpoint("bitnet-relu2")
    name = "model.layers.0.mlp.up_proj.weight"
    made.weights[name] = TernaryTensor(-made.weights[name].codes, made.weights[name].scales)
    write_folder(made, tmp_path / "other", tokenizer=tiny.tokenizer())
    other = verify(hf, tmp_path / "other", backend="reference")
    assert not other.passed(lossless=True) and other.mean_kl > 0.01
    assert "**Failed.**" in other.markdown(hf, tmp_path / "other", (), lossless=True)


def test_verifying_sees_another_tokenizer(tmp_path: Path) -> None:
    hf = folder("bitnet-relu2", tmp_path / "hf")
    write_folder(checkpoint("bitnet-relu2"), tmp_path / "other", tokenizer=tiny.tokenizer())
    file = tmp_path / "other" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:2]
    file.write_text(json.dumps(content))
    found = verify(hf, tmp_path / "other", backend="reference")
    assert found.texts and found.difference == 0 and not found.passed(lossless=False)
