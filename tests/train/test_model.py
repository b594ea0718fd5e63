"""A model in training computes what its architecture means, and what the engine computes once it is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.convert.folder import write_folder
from bitnet.quant.rules import quantize_activations
from bitnet.quant.tensor import TernaryTensor
from bitnet.quant.threshold import Rule
from bitnet.quant.threshold import ternarize as ternarize_numpy
from bitnet.train.described import with_sub_norms
from bitnet.train.export import deployed_checkpoint
from bitnet.train.model import TernaryLM
from bitnet.train.quantizers import FLOAT, Recipe

SIZES = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LLAMA = {**SIZES, "model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False}
GEMMA = {
    **SIZES,
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    },
    "query_pre_attn_scalar": 32,
}
QWEN = {**SIZES, "model_type": "qwen3", "hidden_act": "silu", "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "bitnet": {**SIZES, "model_type": "bitnet", "hidden_act": "relu2", "tie_word_embeddings": True},
    "bitnet-silu": with_sub_norms(LLAMA),
    "llama": LLAMA,
    "qwen3": QWEN,
    "qwen3-norms": with_sub_norms(QWEN),
    "gemma3": GEMMA,
    "gemma3-norms": with_sub_norms(GEMMA),
}
IDS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38]


def shaken(model: TernaryLM, seed: int = 1) -> TernaryLM:
    """Norms away from one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def make(name: str, recipe: Recipe | None = None) -> TernaryLM:
    return shaken(TernaryLM(MODELS[name], recipe, dtype=torch.float32, seed=2))


@torch.no_grad()
def logits(model: TernaryLM, ids: list[int] = IDS) -> np.ndarray:
    return model(torch.tensor([ids]))[0].numpy()


def plain_llama(model: TernaryLM, ids: list[int], rule: Rule | None) -> np.ndarray:
    """Llama and BitNet in NumPy's float64, written down anew."""
    w = {name: p.detach().numpy().astype(np.float64) for name, p in model.named_parameters()}
    c, bitnet = model.config, "layers.0.mlp.ffn_sub_norm.weight" in dict(model.named_parameters())

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        if rule is None:
            return x @ w[f"{name}.weight"].T
        made = ternarize_numpy(w[f"{name}.weight"].astype(np.float32), rule)
        if isinstance(rule.group, int):  # whose scales files hold as float16
            made = TernaryTensor(made.codes, made.scales.astype(np.float16).astype(np.float32))
        matrix = made.dequantize().astype(np.float64)
        codes, s = quantize_activations(x.astype(np.float32))
        return codes / s[:, None].astype(np.float64) @ matrix.T

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_norm_eps) * w[f"{name}.weight"]

    def turn(x: np.ndarray) -> np.ndarray:  # (T, heads, d) as complex numbers
        half = c.head_dim // 2
        angle = np.arange(len(x))[:, None] * c.rope_theta ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
        return np.concatenate((turned.real, turned.imag), -1)

    x = w["embed_tokens.weight"][ids]
    mask = np.tril(np.ones((len(ids), len(ids)), bool))
    for i in range(c.num_hidden_layers):
        at = f"layers.{i}."
        h = norm(x, at + "input_layernorm")
        q, k, v = (linear(h, f"{at}self_attn.{n}_proj").reshape(len(ids), -1, c.head_dim) for n in "qkv")
        k, v = (np.repeat(y, c.num_attention_heads // c.num_key_value_heads, 1) for y in (turn(k), v))
        scores = np.einsum("qhd,khd->hqk", turn(q), k) / np.sqrt(c.head_dim)
        weights = np.exp(np.where(mask, scores, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        h = np.einsum("hqk,khd->qhd", weights, v).reshape(len(ids), -1)
        x = x + linear(norm(h, at + "self_attn.attn_sub_norm") if bitnet else h, at + "self_attn.o_proj")
        h = norm(x, at + "post_attention_layernorm")
        gate, up = (linear(h, f"{at}mlp.{n}_proj") for n in ("gate", "up"))
        h = (np.maximum(gate, 0) ** 2 if c.hidden_act == "relu2" else gate / (1 + np.exp(-gate))) * up
        x = x + linear(norm(h, at + "mlp.ffn_sub_norm") if bitnet else h, at + "mlp.down_proj")
    head = w.get("lm_head.weight", w["embed_tokens.weight"])
    return norm(x, "norm") @ head.T


@pytest.mark.parametrize("name", ["llama", "bitnet", "bitnet-silu"])
@pytest.mark.parametrize("rule", [None, Rule(), Rule("threshold", group="row"), Rule(group=32)], ids=str)
def test_a_model_is_a_plain_implementation_of_it(name: str, rule: Rule | None) -> None:
    model = make(name, FLOAT if rule is None else Recipe(rule))
    ours, theirs = logits(model), plain_llama(model, IDS, rule)
    tiny.assert_same_logits(ours, theirs.astype(np.float32), 2e-4, name)


def test_documents_in_a_row_do_not_see_each_other() -> None:
    model, row = make("llama"), torch.tensor([IDS])
    documents = torch.tensor([[1] * 6 + [2] * 8])
    with torch.no_grad():
        together = model(row, documents)[0].numpy()
    np.testing.assert_allclose(together[:6], logits(model, IDS[:6]), atol=1e-5)
    np.testing.assert_allclose(together[6:], logits(model, IDS[6:]), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_the_engine_computes_the_trained_model(name: str, kind: str, tmp_path: Path) -> None:
    model = make(name)
    deployed = deployed_checkpoint(model, tmp_path / "model")
    if kind == "gguf":
        path = tiny.convert(deployed, tmp_path / "model.gguf", weights="i2_s", tokenizer=tiny.tokenizer())
    else:
        path = tmp_path / "folder"
        write_folder(deployed, path, tokenizer=tiny.tokenizer())
    tiny.assert_same_logits(tiny.logits(tiny.load(path, "cpu"), IDS), logits(model), 2e-4, name)


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        (Recipe(Rule("threshold", group="row")), "iq2_bn"),
        (Recipe(Rule("optimal", group=64)), "q2_0"),
        (Recipe(trainable_scale=True), "i2_s"),
        (Recipe(mixed={"down_proj": 4, "o_proj": 8, r"layers\.0\.self_attn\.q_proj": 16}), "i2_s"),
    ],
    ids=["row", "group", "trained-scale", "mixed"],
)
@pytest.mark.parametrize("name", ["bitnet", "llama"])
def test_the_engine_computes_what_other_recipes_train(name: str, recipe: Recipe, weights: Any, tmp_path: Path) -> None:
    model = make(name, recipe)
    if recipe.trainable_scale:
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(".scale"):
                    parameter *= 1.3
    path = tmp_path / "model.gguf"
    tiny.convert(deployed_checkpoint(model, tmp_path), path, weights=weights, tokenizer=tiny.tokenizer())
    tiny.assert_same_logits(tiny.logits(tiny.load(path, "cpu"), IDS), logits(model), 2e-4, name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_a_packed_model_is_opened_for_training_as_it_was(name: str, kind: str, tmp_path: Path) -> None:
    model = make(name)
    deployed, path = deployed_checkpoint(model, tmp_path), tmp_path / "model.gguf"
    if kind == "gguf":
        tiny.convert(deployed, path, weights="i2_s", tokenizer=tiny.tokenizer())
    else:
        path = tmp_path / "folder"
        write_folder(deployed, path, tokenizer=tiny.tokenizer())
    opened = TernaryLM.from_pretrained(path, dtype=torch.float32)
    tiny.assert_same_logits(logits(opened), logits(model), 2e-4, name)


def test_a_step_that_quantises_once_gives_the_gradients_of_one_that_does_so_each_time() -> None:
    recipe = Recipe(trainable_scale=True, mixed={"o_proj": 8})
    ids, targets = torch.tensor([IDS, IDS[::-1]]), torch.tensor([[*IDS[1:], -100], [*IDS[-2::-1], -100]])
    batches = [
        {"ids": ids[i : i + 1], "documents": torch.zeros(1, len(IDS)), "targets": targets[i : i + 1]} for i in (0, 1)
    ]
    one, other = make("bitnet", recipe), make("bitnet", recipe)
    with one.step():
        for batch in batches:
            one.loss(batch).backward()
    for batch in batches:
        other.loss(batch).backward()
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    one, other = make("bitnet"), make("bitnet")
    other.checkpointing = True
    batch = {"ids": torch.tensor([IDS]), "documents": torch.zeros(1, len(IDS)), "targets": torch.tensor([IDS])}
    for model in (one, other):
        model.loss(batch).backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


def test_sub_norms_make_a_llama_a_bitnet() -> None:
    assert set(make("bitnet-silu").shapes) - set(make("llama").shapes) == {
        f"layers.{i}.{norm}" for i in (0, 1) for norm in ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")
    }
