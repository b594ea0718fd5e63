"""The core's kernels for training compute what TorchOps says, forward and backward, within bfloat16's rounding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

import training_run
from training_run import counting

import bitnet._core as _core
from bitnet.backends.torch import ACTIVATIONS, attend
from bitnet.quant.threshold import Rule
from bitnet.train import fused
from bitnet.train.fused import Attention, FusedOps, Input, Turn, first_of, head_loss
from bitnet.train.model import TernaryLM, document_mask, nats
from bitnet.train.optimizer import Rates
from bitnet.train.quantizers import Recipe
from bitnet.train.trainer import Plan, Trainer

SIZES = {
    "vocab_size": 301, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 20, "query_pre_attn_scalar": 32}
MODELS: dict[str, dict[str, Any]] = {
    "bitnet": {"model_type": "bitnet", "hidden_act": "relu2"},
    "llama": {"model_type": "llama", "hidden_act": "silu"},
    "qwen3": {"model_type": "qwen3", "hidden_act": "silu"},
    "gemma3": {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"], **GEMMA},
}
RECIPES = {
    "plain": Recipe(),
    "trained-scale": Recipe(Rule(group="row"), trainable_scale=True),
    "groups": Recipe(Rule("threshold", group=32)),
    "mixed": Recipe(mixed={"o_proj": 8, r"layers\.0\.mlp": 16}),
    "float-activations": Recipe(activations=16),
}
LENGTH = 150


def batch_of_documents() -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    targets = torch.randint(0, 301, (2, LENGTH), generator=random)
    targets[:, ::7] = -100
    documents = torch.tensor([[0] * 70 + [1] * 13 + [2] * 67, [4] * 150])
    return {
        "ids": torch.randint(0, 301, (2, LENGTH), generator=random), "documents": documents, "targets": targets,
    }  # fmt: skip


def model_of(name: str, recipe: Recipe, dtype: Any) -> TernaryLM:
    model, random = TernaryLM({**SIZES, **MODELS[name]}, recipe, dtype=dtype), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter *= 1 + 0.2 * torch.randn(parameter.shape, generator=random)
    return model


def likeness(a: Any, b: Any) -> tuple[float, float]:
    """The cosine of two gradients, and how long one is beside the other."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm())), float(b.norm() / a.norm())


@pytest.mark.parametrize(
    ("name", "recipe"), [*((name, "plain") for name in MODELS), *(("bitnet", recipe) for recipe in RECIPES)]
)
def test_loss_and_gradients_are_those_of_float32(name: str, recipe: str) -> None:
    exact, found = model_of(name, RECIPES[recipe], torch.float32), model_of(name, RECIPES[recipe], torch.bfloat16)
    batch = batch_of_documents()
    assert found.fused(torch.device("cpu")) and not exact.fused(torch.device("cpu"))
    losses = [model.loss(batch) for model in (exact, found)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-3)
    for loss in losses:
        (loss / 250).backward()
    for (spelled, a), (_, b) in zip(exact.named_parameters(), found.named_parameters(), strict=True):
        if a.ndim:  # one number is no direction
            cosine, length = likeness(a.grad, b.grad)
            assert cosine > 0.985 and length == pytest.approx(1, abs=0.05), (spelled, cosine, length)


def floats(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def compare(ours: Any, theirs: Any, *inputs: Any, tolerance: float = 0.02) -> None:
    """Values and gradients of two functions, theirs in float32."""
    leaves = [
        [x.detach().clone().to(kind).requires_grad_() for x in inputs] for kind in (torch.bfloat16, torch.float32)
    ]
    results = [function(*given) for function, given in zip((ours, theirs), leaves, strict=True)]
    weight = torch.randn(results[1].shape, generator=torch.Generator().manual_seed(9))
    for result in results:
        (result.float() * weight).sum().backward()
    pairs = [(results[0], results[1]), *((a.grad, b.grad) for a, b in zip(*leaves, strict=True))]
    for a, b in pairs:
        torch.testing.assert_close(a.float(), b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def rms(x: Any, norm: Any) -> Any:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * norm


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_a_gated_and_normed_input(act: str) -> None:
    def ours(x: Any, gate: Any, norm: Any) -> Any:
        return Input.apply(x, gate, norm.float(), act, 1e-5)

    compare(
        ours, lambda x, gate, norm: rms(ACTIVATIONS[act](gate) * x, norm),
        floats(130, 48), floats(130, 48, seed=1), 1 + floats(48, seed=2) / 4,
    )  # fmt: skip


def test_rotated_heads() -> None:
    angles = torch.outer(torch.arange(9.0), torch.tensor([0.5**i for i in range(16)]))
    at = torch.tensor([0, 3, 8, 1])

    def theirs(x: Any) -> Any:
        low, high = x.view(4, 3, 32).chunk(2, -1)
        cos, sin = angles.cos()[at][:, None], angles.sin()[at][:, None]
        return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).view(4, 96)

    compare(lambda x: Turn.apply(x, at, angles.cos(), angles.sin()), theirs, floats(4, 96))


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("length", [1, 40, 133])
def test_attention_over_documents(length: int, window: int) -> None:
    documents = torch.stack([torch.arange(length) // 50, torch.arange(length) // 21])
    mask, at = document_mask(documents), torch.arange(length)
    if window:
        mask = mask & (at[:, None] - at < window)

    def theirs(q: Any, k: Any, v: Any) -> Any:
        heads = [x.view(2, length, -1, 16).transpose(1, 2) for x in (q, k, v)]
        return attend(*heads, mask).transpose(1, 2).reshape(2 * length, -1)

    compare(
        lambda q, k, v: Attention.apply(q, k, v, first_of(documents), 16, window), theirs,
        floats(2 * length, 64), floats(2 * length, 32, seed=1), floats(2 * length, 32, seed=2), tolerance=0.03,
    )  # fmt: skip


@pytest.mark.parametrize("vocabulary", [7, 32, 301])
def test_the_loss_of_a_head(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in parts, and where rows have no target."""
    monkeypatch.setattr(fused, "LOGITS", 64 * vocabulary)
    targets = torch.arange(150) % vocabulary
    targets[::5] = -100
    compare(
        lambda x, head: head_loss(x, head, targets) / 100, lambda x, head: nats((x @ head.t())[None], targets) / 100,
        floats(150, 48) / 4, floats(vocabulary, 48, seed=1),
    )  # fmt: skip


def test_training_with_these_kernels_is_training_without(tmp_path: Path) -> None:
    """The same losses in the course of some steps, up to noise."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    for with_kernels, found in losses.items():
        model = TernaryLM({**SIZES, **MODELS["bitnet"]})
        if not with_kernels:
            model.fused = lambda device: False  # type: ignore[method-assign]
        plan = Plan(tmp_path / str(with_kernels), steps=40, rows=8)
        run = Trainer(model, counting(400, 0), plan, rates=Rates("adamw", adam=1e-3))
        found += [run.train_step() for _ in range(25)]
    ours, theirs = np.array(losses[True]), np.array(losses[False])
    assert theirs[-1] < 0.8 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=0.03)


def test_a_run_in_bfloat16_goes_on_with_identical_losses(tmp_path: Path) -> None:
    def run(out: Path) -> Trainer:
        return Trainer(TernaryLM({**SIZES, **MODELS["bitnet"]}), counting(64, 0), Plan(out, steps=20, rows=8))

    whole, part = run(tmp_path / "whole"), run(tmp_path / "part")
    (tmp_path / "part").mkdir()
    losses = [whole.train_step() for _ in range(8)]
    before = [part.train_step() for _ in range(3)]
    part.save()
    again = run(tmp_path / "part")
    again.resume()
    assert [*before, *(again.train_step() for _ in range(5))] == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.module.parameters(), again.module.parameters(), strict=True))


def everything() -> list[Any]:
    """What all the kernels compute, forward and backward."""
    x, gate, norm = (y.requires_grad_() for y in (floats(260, 96), floats(260, 96, seed=1), torch.rand(96)))
    found = [Input.apply(x, gate, norm, act, 1e-5) for act in ACTIVATIONS]
    weights = [torch.randint(-1, 2, (96, 96)).bfloat16().requires_grad_(), torch.tensor(0.3)]
    found += fused.Linear.apply(x, gate, norm, "silu", 1e-5, *weights)
    angles = torch.outer(torch.arange(260.0), torch.tensor([0.7**i for i in range(16)]))
    found.append(Turn.apply(x, torch.arange(260), angles.cos(), angles.sin()))
    found.append(Attention.apply(x, gate[:, :32], found[0][:, :32], first_of(torch.zeros(2, 130)), 16, 0))
    found.append(head_loss(x, gate, torch.arange(260) % 260))
    torch.stack([y.float().square().sum() for y in found]).sum().backward()
    return [*found, *(leaf.grad for leaf in (x, gate, norm, weights[0]))]


@pytest.fixture
def restored() -> Iterator[None]:
    threads, isa = _core.threads(), _core.isa()
    yield
    _core.set_threads(threads)
    _core.set_isa(isa)


@pytest.mark.usefixtures("restored")
def test_neither_threads_nor_instruction_sets_change_a_bit() -> None:
    torch.manual_seed(0)
    expected = everything()
    for isa, threads in [*((isa, 1) for isa in _core.isas()), (_core.isa(), 2), (_core.isa(), 5)]:
        _core.set_isa(isa)
        _core.set_threads(threads)
        torch.manual_seed(0)
        assert all(torch.equal(a, b) for a, b in zip(expected, everything(), strict=True)), (isa, threads)


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, codes = floats(4, 32), torch.empty(4, 32, dtype=torch.int8)
    core: Any = _core
    with pytest.raises(ValueError, match="multiple of 16"):
        core.train_quantize(floats(4, 30), None, "", None, 1e-5, codes, torch.empty(4))
    with pytest.raises(ValueError, match="codes has 128 elements; expected 3 x 32"):
        core.train_quantize(x[:3], None, "", None, 1e-5, codes, torch.empty(3))
    with pytest.raises(ValueError, match="another dtype"):
        core.train_quantize(x.float(), None, "", None, 1e-5, codes, torch.empty(4))
    with pytest.raises(ValueError, match="beyond the logits"):
        core.train_cross_entropy(x, torch.tensor([0, 1, 32, 3]), torch.empty(4), torch.empty(4))
    with pytest.raises(ValueError, match="leave the tables"):
        core.train_rope(x, torch.ones(3, 16), torch.ones(3, 16), torch.tensor([0, 1, 2, 3]), False, torch.empty_like(x))


def test_what_does_not_suit_the_kernels_is_left_to_torch() -> None:
    odd = {**training_run.DESCRIPTION, "head_dim": 8}
    assert not TernaryLM(odd).fused(torch.device("cpu"))
    assert type(TernaryLM(odd).decoder(torch.zeros(1, 4, dtype=torch.long)).ops) is not FusedOps
