"""A checkpoint written as GGUF is the same model when it is opened again, and says so in llama.cpp's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import float_models
import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.convert import write_checkpoint
from bitnet.errors import ParameterError, UnsupportedError
from bitnet.quant.tensor import DenseTensor, TernaryTensor
from bitnet.tokenizer import Tokenizer

IDS = list(range(3, 40))


def half_scales(source: tiny.Synthetic) -> tiny.Synthetic:
    """With scales that float16 holds, so that TQ types lose nothing."""
    for name, weight in source.weights.items():
        if isinstance(weight, TernaryTensor):
            source.weights[name] = TernaryTensor(weight.codes, weight.scales.astype(np.float16).astype(np.float32))
    return source


@pytest.mark.parametrize("weights", ["tq2_0", "tq1_0", "i2_s"])
@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_a_written_model_gives_the_same_logits(name: str, weights: str, tmp_path: Path) -> None:
    source = half_scales(tiny.Synthetic(tiny.VARIANTS[name]))
    before = tiny.logits(tiny.load(source), IDS)
    after = tiny.logits(tiny.load(tiny.convert(source, tmp_path / "model.gguf", weights=weights)), IDS)
    if name.startswith("bitnet"):
        np.testing.assert_array_equal(after, before)
    else:  # the rows of q and k are in another order, and with them the sum of each attention score
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_a_written_model_written_again_is_the_same_file(name: str, tmp_path: Path) -> None:
    first = tiny.convert(half_scales(tiny.Synthetic(tiny.VARIANTS[name])), tmp_path / "first.gguf", weights="tq2_0")
    with formats.open(first) as checkpoint:
        write_checkpoint(checkpoint, tmp_path / "between.gguf", weights="i2_s", embeddings="f32")
    with formats.open(tmp_path / "between.gguf") as checkpoint:
        write_checkpoint(checkpoint, tmp_path / "second.gguf", weights="tq2_0", embeddings="f32")
    assert read_all(first) == read_all(tmp_path / "second.gguf")


def read_all(path: Path) -> dict[str, Any]:
    with formats.open(path) as checkpoint:
        tensors = {name: checkpoint.read(name).dequantize().tobytes() for name in checkpoint.tensors()}
        return {**checkpoint.metadata, "general.name": "", **tensors}


def test_rows_of_odd_length_fit_into_i2_s_only(tmp_path: Path) -> None:
    source = tiny.Synthetic(tiny.BITNET)  # rows of 64 and 160
    tiny.convert(source, tmp_path / "model.gguf", weights="i2_s")
    with pytest.raises(ParameterError, match=r"(?s)blk\.0.*I2_S"):
        tiny.convert(source, tmp_path / "other.gguf", weights="tq2_0")
    assert [each.name for each in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(("embeddings", "tolerance"), [("f32", 0), ("f16", 0), ("bf16", 4e-3), ("q8_0", 1e-2)])
def test_embeddings_take_the_type_asked_for(embeddings: str, tolerance: float, tmp_path: Path) -> None:
    source = tiny.Synthetic(tiny.LLAMA | {"tie_word_embeddings": False})
    with formats.open(tiny.convert(source, tmp_path / "m.gguf", weights="i2_s", embeddings=embeddings)) as checkpoint:
        for ours, theirs in (("token_embd.weight", "model.embed_tokens.weight"), ("output.weight", "lm_head.weight")):
            assert checkpoint.tensors()[ours].dtype == embeddings.upper()
            before, after = source.read(theirs).dequantize(), checkpoint.read(ours).dequantize()
            assert np.abs(after - before).max() <= tolerance * np.abs(before).max()


def test_the_architecture_follows_the_activation(tmp_path: Path) -> None:
    expected = {"bitnet-relu2": "bitnet-b1.58", "bitnet-silu": "bitnet", "llama": "llama"}
    for name, architecture in expected.items():
        with formats.open(tiny.convert(tiny.Synthetic(tiny.VARIANTS[name]), tmp_path / "m.gguf")) as checkpoint:
            assert checkpoint.architecture == architecture


def test_an_architecture_that_means_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"'bitnet'.*bitnet-b1.58 or bitnet-25"):
        tiny.convert(tiny.Synthetic(tiny.BITNET), tmp_path / "m.gguf", architecture="bitnet")
    with pytest.raises(UnsupportedError, match="bitnet with gelu"):
        tiny.convert(tiny.Synthetic(tiny.BITNET | {"hidden_act": "gelu_pytorch_tanh"}), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"weights": "q4_0"}, {"embeddings": "TQ2_0"}])
def test_an_unknown_type_is_refused(option: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected"):
        tiny.convert(tiny.Synthetic(tiny.BITNET), tmp_path / "m.gguf", **option)


def test_masters_are_ternarised_and_norms_become_float32(tmp_path: Path) -> None:
    source = tiny.Synthetic(tiny.BITNET | tiny.WIDE)
    for name, weight in source.weights.items():
        source.weights[name] = DenseTensor(weight.dequantize().astype(np.float16), "F16")
    with formats.open(tiny.convert(source, tmp_path / "m.gguf", embeddings="f16")) as checkpoint:
        types = {name: info.dtype for name, info in checkpoint.tensors().items()}
    assert types["token_embd.weight"] == "F16"
    assert types["blk.1.ffn_sub_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.1.attn_k.weight"] == types["blk.0.ffn_down.weight"] == "TQ2_0"


def test_float_projections_keep_their_type(tmp_path: Path) -> None:
    source = float_models.float_model()
    with formats.open(tiny.convert(source, tmp_path / "m.gguf")) as checkpoint:
        assert checkpoint.tensors()["blk.0.attn_q.weight"].dtype == "F16"
        assert checkpoint.metadata["general.file_type"] == 1
    after = tiny.logits(tiny.load(tmp_path / "m.gguf"), IDS)
    np.testing.assert_allclose(after, tiny.logits(tiny.load(source), IDS), rtol=0, atol=1e-4)


def test_what_a_gguf_source_says_of_itself_is_kept(tmp_path: Path) -> None:
    first = tiny.convert(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), tmp_path / "first.gguf")
    with formats.open(first) as checkpoint:
        checkpoint.metadata = {**checkpoint.metadata, "general.name": "Tiny", "general.license": "mit"}
        write_checkpoint(checkpoint, tmp_path / "second.gguf", weights="i2_s")
    with formats.open(tmp_path / "second.gguf") as checkpoint:
        assert checkpoint.metadata["general.name"] == "Tiny"
        assert checkpoint.metadata["general.license"] == "mit"
        assert checkpoint.metadata["general.file_type"] == 40
        assert Tokenizer.from_checkpoint(checkpoint).encode("the end") == tiny.tokenizer().encode("the end")


def test_progress_counts_the_bytes_of_the_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = tiny.convert(
        tiny.Synthetic(tiny.VARIANTS["llama-llama3"]), tmp_path / "m.gguf", progress=lambda *at: seen.append(at)
    )
    done = [done for done, _ in seen]
    assert done == sorted(done) and {total for _, total in seen} == {path.stat().st_size}
    assert done[-1] == path.stat().st_size and len(seen) > 20
