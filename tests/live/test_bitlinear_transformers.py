"""convert_to_bitlinear on models of transformers: a plain BitLinear's numbers, and files that the engine opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from training_run import counting

from bitnet.errors import ParameterError, UnsupportedError
from bitnet.quant import threshold
from bitnet.quant.threshold import Rule
from bitnet.train.bitlinear import BitLinear, CausalLM, bitlinears, convert_to_bitlinear, write_transformer
from bitnet.train.optimizer import Rates
from bitnet.train.quantizers import Recipe
from bitnet.train.trainer import Plan, Trainer

SIZES = {
    "vocab_size": 272, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
}  # fmt: skip
IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]])


def make(name: str) -> Any:
    t = transformers
    torch.manual_seed(0)
    if name == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, tie_word_embeddings=False)).eval()
    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, tie_word_embeddings=True)).eval()
    if name == "opt":
        sizes = {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64, "num_attention_heads": 4}
        config = t.OPTConfig(vocab_size=272, num_hidden_layers=2, max_position_embeddings=64, **sizes)
        return shaken(t.OPTForCausalLM(config)).eval()
    return shaken(
        t.GPT2LMHeadModel(t.GPT2Config(vocab_size=272, n_positions=64, n_embd=64, n_layer=2, n_head=4))
    ).eval()


SMALL = {**SIZES, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


def other(name: str) -> Any:
    """One of each kind of attention and of tying, with weights so large that who sees what shows."""
    t = transformers
    torch.manual_seed(0)
    config: Any = getattr(t, name.replace("3ForCausalLM", "3TextConfig").replace("ForCausalLM", "Config"), None)
    if name == "BertForMaskedLM":
        return t.BertForMaskedLM(t.BertConfig(**{**SMALL, "num_attention_heads": 2})).eval()
    if name in ("BloomForCausalLM", "MambaForCausalLM", "FalconForCausalLM"):
        sizes = {"vocab_size": 272, "hidden_size": 32, "num_hidden_layers": 1, "n_layer": 1, "num_attention_heads": 2}
        return getattr(t, name)(config(**sizes)).eval()
    model = getattr(t, name)(config(**{**SMALL, "sliding_window": 4, "pad_token_id": 0})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 8
    return model


def shaken(model: Any) -> Any:
    """Biases away from zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def plainly_rounded(model: Any, rule: Rule) -> Any:
    """The same model with its weights replaced by what the rule makes of them, and inputs rounded by a hook."""

    def rounded(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        s = 127 / inputs[0].abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return ((inputs[0] * s).round() / s, *inputs[1:])

    for name, module in model.named_modules():
        turned = type(module).__name__ == "Conv1D"
        if (turned or isinstance(module, torch.nn.Linear)) and "lm_head" not in name:
            weight = module.weight.detach().numpy()
            made = threshold.ternarize(np.ascontiguousarray(weight.T if turned else weight), rule).dequantize()
            module.weight.data = torch.from_numpy(np.ascontiguousarray(made.T if turned else made))
            module.register_forward_pre_hook(rounded)
    return model


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> np.ndarray:
    return model(input_ids=ids).logits[0].float().numpy()


@pytest.mark.parametrize("rule", [Rule(), Rule("threshold", group="row")], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "gpt2"])
def test_a_converted_model_computes_a_plain_bitlinear(name: str, rule: Rule) -> None:
    converted = convert_to_bitlinear(make(name), recipe=Recipe(rule))
    assert len(bitlinears(converted)) == {"llama": 14, "qwen3": 14, "opt": 12, "gpt2": 8}[name]
    tiny.assert_same_logits(logits(converted), logits(plainly_rounded(make(name), rule)), 1e-4, name)


def test_what_is_skipped_stays_and_what_is_mixed_has_its_bits() -> None:
    model = convert_to_bitlinear(make("llama"), skip=("lm_head", r"layers\.0\."), mixed={"o_proj": 16, "down_proj": 8})
    found = {name.split(".", 2)[2]: layer.bits for name, layer in bitlinears(model).items()}
    assert all(name.startswith("1.") for name in found)
    assert found["1.self_attn.o_proj"] == 16 and found["1.mlp.down_proj"] == 8 and found["1.mlp.up_proj"] == 1.58
    with pytest.raises(ParameterError, match="no linear layer"):
        convert_to_bitlinear(make("llama"), skip=("",))


def test_sixteen_bits_change_nothing() -> None:
    model = convert_to_bitlinear(make("llama"), mixed={"": 16})
    np.testing.assert_allclose(logits(model), logits(make("llama")), atol=1e-6)


def test_documents_in_a_row_do_not_see_each_other() -> None:
    model = CausalLM(convert_to_bitlinear(make("llama")), torch.float32)
    documents = torch.tensor([[0] * 5 + [1] * 7])
    targets = torch.tensor([[14, 15, 92, 65, -100, 89, 79, 32, 38, 46, 26, -100]])
    together = model.loss({"ids": IDS, "documents": documents, "targets": targets})
    apart = [
        model.loss({"ids": IDS[:, part], "documents": documents[:, part] * 0, "targets": targets[:, part]})
        for part in (slice(0, 5), slice(5, 12))
    ]
    assert float(together.detach()) == pytest.approx(float(sum(apart).detach()), rel=1e-4)


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Gemma3ForCausalLM", "gpt2", "opt"])
def test_rows_are_read_as_the_model_reads_their_documents(name: str) -> None:
    """Also where layers have a window, or positions are learnt."""
    model = convert_to_bitlinear(make(name) if name in ("gpt2", "opt") else other(name), mixed={"": 16})
    targets = IDS.roll(-1, 1)
    targets[0, [2, -1]] = -100
    batch = {"ids": IDS, "documents": torch.tensor([[0] * 3 + [1] * 9]), "targets": targets}
    apart = [model(input_ids=IDS[:, part]).logits for part in (slice(0, 3), slice(3, 12))]
    wanted = torch.nn.functional.cross_entropy(torch.cat(apart, 1)[0], targets[0], reduction="sum")
    assert float(CausalLM(model, torch.float32).loss(batch).detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BloomForCausalLM", "MambaForCausalLM"])
def test_what_would_mix_the_documents_of_a_row_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} is no causal language model that keeps"):
        CausalLM(convert_to_bitlinear(other(name)))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "BertForMaskedLM", "FalconForCausalLM"])
def test_the_output_head_stays_and_what_is_shared_stays_shared(name: str) -> None:
    model = make(name) if name in ("llama", "qwen3", "gpt2") else other(name)
    names, kept = set(dict(model.named_parameters())), dict(model.named_parameters())
    convert_to_bitlinear(model)
    assert not isinstance(model.get_output_embeddings(), BitLinear) and set(dict(model.named_parameters())) == names
    assert all(kept[f"{each}.weight"] is layer.weight for each, layer in bitlinears(model).items()) or name == "gpt2"
    convert_to_bitlinear(model, skip=())
    assert isinstance(model.get_output_embeddings(), BitLinear) and set(dict(model.named_parameters())) == names


def test_experts_outside_of_linear_layers_are_refused_unless_they_are_skipped() -> None:
    sizes = {**SMALL, "num_local_experts": 2}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    with pytest.raises(ParameterError, match="experts.gate_up_proj holds the matrices of 2 experts"):
        convert_to_bitlinear(model)
    assert len(bitlinears(convert_to_bitlinear(model, skip=("lm_head", "experts")))) == 4


def test_an_expression_that_is_found_nowhere_is_refused() -> None:
    with pytest.raises(ParameterError, match="'k_projj' is found in no weight's name"):
        convert_to_bitlinear(make("llama"), mixed={"k_projj": 8})


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_converted_model_is_trained(name: str, tmp_path: Path) -> None:
    model = CausalLM(convert_to_bitlinear(make(name), recipe=Recipe(trainable_scale=True)))
    rates = Rates("adamw", adam=1e-2)
    trainer = Trainer(model, counting(64, 0), Plan(tmp_path, steps=12, rows=8, log_every=1), rates=rates)
    first = trainer.train_step()
    trainer.run()
    assert trainer.train_step() < 0.8 * first
    assert all(layer.scale.grad is None and layer.scale.ndim == 0 for layer in bitlinears(model).values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("qwen3", {"norm_eps": 1e-6}),
        ("llama", {"mixed": {"o_proj": 16}, "recipe": Recipe(trainable_scale=True)}),
    ],
    ids=str,
)
def test_the_engine_opens_what_was_converted(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = convert_to_bitlinear(make(name), **options)
    with torch.no_grad():
        for layer in bitlinears(model).values():
            if layer.scale is not None:
                layer.scale *= 1.2
            if layer.norm is not None:
                layer.norm.weight *= 1 + 0.1 * torch.randn_like(layer.norm.weight)
    write_transformer(model, tmp_path / "model", tiny.tokenizer())
    engine = tiny.logits(tiny.load(tmp_path / "model", "cpu"), IDS[0].tolist())
    tiny.assert_same_logits(engine, logits(model), 2e-4, name)


def test_a_model_with_biases_is_none_of_the_engines(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SIZES, attention_bias=True)
    model = convert_to_bitlinear(transformers.LlamaForCausalLM(config))
    with pytest.raises(UnsupportedError, match="attention_bias"):
        write_transformer(model, tmp_path / "model", tiny.tokenizer())


def test_a_layer_is_a_drop_in_for_linear() -> None:
    layer = BitLinear(64, 8, bias=False)
    assert isinstance(layer, torch.nn.Linear) and layer(torch.randn(2, 3, 64)).shape == (2, 3, 8)
