"""BitLinear for anybody's PyTorch model: any `transformers` model trained as the engine will run it.

convert_to_bitlinear(model, mixed={r"layers\\.0\\.": 16})
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bitnet.backends.torch import Quantized, bit_linear
from bitnet.convert.folder import write_folder
from bitnet.convert.losses import Losses
from bitnet.errors import ParameterError, UnsupportedError
from bitnet.models.names import spellings
from bitnet.quant.tensor import DenseTensor
from bitnet.quant.tensor import Tensor as Stored
from bitnet.tokenizer import Tokenizer
from bitnet.train.described import DROPPED, INPUT_NORMS, Described
from bitnet.train.fused import first_of
from bitnet.train.model import nats
from bitnet.train.quantizers import TERNARY, Recipe, deployed, quantize, ternarize


class BitLinear(nn.Linear):
    """A linear layer whose weight (out, in) and input are rounded as `recipe` says; the bias is not.

    name: by which the recipe knows its bits. norm_eps: of an RMSNorm before it; None: there is none.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        recipe: Recipe | None = None,
        name: str = "",
        norm_eps: float | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.recipe = recipe or Recipe()
        self.bits = self.recipe.bits(name)
        self.recipe.check(name or "weight", (out_features, in_features))
        self.norm = None if norm_eps is None else nn.RMSNorm(in_features, norm_eps, device=device, dtype=dtype)
        self.blend: Tensor | None = None
        self.register_parameter("scale", None)

    def start_scale(self) -> None:
        """The trained scale, if there is one, as the rule has it for the weight of now."""
        if self.recipe.trainable_scale and self.bits == TERNARY:
            self.scale = nn.Parameter(ternarize(self.weight.detach().float(), self.recipe.rule)[1].clone())

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        weight = quantize(self.weight.float(), self.bits, self.recipe, dtype, self.blend, self.scale)
        flat = x.reshape(-1, self.in_features).to(dtype)
        y = bit_linear(flat, weight)[0] if isinstance(weight, Quantized) else flat @ weight.t()
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def convert_to_bitlinear(
    model: nn.Module,
    skip: Sequence[str] | None = None,
    mixed: Mapping[str, float] | None = None,
    *,
    recipe: Recipe | None = None,
    norm_eps: float | None = None,
) -> nn.Module:
    """Put a BitLinear with the same weight and bias in the place of every linear layer of `model`, in place.

    skip: regular expressions; a layer whose name one is found in stays; None: the output head. mixed: bits by such
    expressions (see Recipe). norm_eps: puts an RMSNorm before every one of them. A weight that is shared with another
    layer stays shared. Raises ParameterError where nothing is left to convert, an expression of `mixed` is found
    nowhere, a layer cannot be quantised so, or experts keep their weights outside of linear layers.
    """
    recipe = recipe or Recipe()
    recipe = replace(recipe, mixed={**recipe.mixed, **(mixed or {})})
    patterns = tuple(skip) if skip is not None else heads_of(model)
    left = {n: m for n, m in model.named_modules() if not any(re.search(pattern, n) for pattern in patterns)}
    refuse_experts(left)
    linears = {name: module for name, module in left.items() if is_linear(module)}
    if not linears and not bitlinears(model):
        raise ParameterError(f"{type(model).__name__} has no linear layer that skip = {patterns} leaves.")
    if linears:
        recipe.refuse_unmatched(linears)
    for name, module in linears.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, bitlinear_of(module, recipe, name, norm_eps))
    return model


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Expressions for the layers that make logits: most are called lm_head, the others are known by the model."""
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find()
    return "lm_head", *(f"^{re.escape(name)}$" for name, module in model.named_modules() if module is head)


def refuse_experts(modules: Mapping[str, nn.Module]) -> None:
    """Transformers 5 holds the matrices of all experts of a layer in one parameter."""
    for name, module in modules.items():
        for last, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3 and last.endswith("_proj"):
                raise ParameterError(
                    f"{name}.{last} holds the matrices of {len(parameter)} experts, which no BitLinear can take over.",
                    "To leave the experts in float: skip=('lm_head', 'experts').",
                )


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, Falcon's, which is the same, and GPT-2's Conv1D of transformers, which has its weight turned."""
    return type(module) is nn.Linear or type(module).__name__ == "FalconLinear" or is_turned(module)


def is_turned(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


@torch.no_grad()
def bitlinear_of(module: Any, recipe: Recipe, name: str, norm_eps: float | None) -> BitLinear:
    weight = module.weight.t() if is_turned(module) else module.weight
    made = BitLinear(
        weight.shape[1], weight.shape[0], module.bias is not None,
        recipe=recipe, name=name, norm_eps=norm_eps, device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    if is_turned(module):
        made.weight.copy_(weight)
    else:
        made.weight = module.weight
    made.bias = module.bias
    made.start_scale()
    return made.train(module.training)


def bitlinears(model: nn.Module) -> dict[str, BitLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


class CausalLM(nn.Module):
    """A causal language model of transformers, as the trainer wants one. dtype: that autocast computes in.

    Raises UnsupportedError where the model cannot keep the documents of a row apart.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype
        if not packs(model):
            raise UnsupportedError(
                f"{type(model).__name__} is no causal language model that keeps the documents of a row apart.",
                "Train it in a loop of your own: what convert_to_bitlinear made is an ordinary module.",
            )

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Nats of all targets together; a token looks at its own document up to itself.

        Where positions begin anew a document does: transformers makes the masks of that which each layer wants, such as
        those of a window.
        """
        documents = batch["documents"]
        at = torch.arange(documents.shape[1], device=documents.device)
        positions = at - first_of(documents)
        with torch.autocast(documents.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(input_ids=batch["ids"], position_ids=positions, use_cache=False).logits
        return nats(logits, batch["targets"])

    @property
    def blend(self) -> Tensor | None:
        return next(iter(bitlinears(self.model).values())).blend

    @blend.setter
    def blend(self, blend: Tensor | None) -> None:
        for module in bitlinears(self.model).values():
            module.blend = blend


def packs(model: nn.Module) -> bool:
    """Whether this model of transformers (4.53 or later) tells the documents of a row by their positions."""
    masks, its_own = (sys.modules.get(name) for name in ("transformers.masking_utils", type(model).__module__))
    return (
        hasattr(masks, "find_packed_sequence_indices")
        and hasattr(its_own, "create_causal_mask")
        and "position_ids" in signature(model.forward).parameters
        and bool(cast(Any, model).can_generate())
    )


def deployed_transformer(model: Any, path: Path) -> Described:
    """A converted transformers model of one of the engine's architectures, as a checkpoint. path: how it is called."""
    layers, description = bitlinears(model), model.config.to_dict()
    weights: dict[str, Stored] = {}
    for name, value in model.state_dict().items():
        owner = name.removesuffix(".weight")
        if owner in layers:
            layer = layers[owner]
            weights[name] = deployed(value, layer.bits, layer.recipe, layer.scale)
        elif not (name.endswith(".scale") and name.removesuffix(".scale") in layers):
            weights[name] = DenseTensor(value.detach().float().cpu().numpy())
    norms = [layer.norm for layer in layers.values() if layer.norm is not None]
    kept = [name.removesuffix(".weight") for name in weights if name.endswith("_proj.weight")]
    kept = [name for name in kept if name not in layers or layers[name].bits != TERNARY]
    quantization = {**INPUT_NORMS, "modules_to_not_convert": ["lm_head", *kept]}
    quantization |= {"rms_norm_eps": norms[0].eps} if norms else {"use_rms_norm": False}
    description = {key: value for key, value in description.items() if key not in DROPPED}
    head = spellings("lm_head", "hf")[0]
    owner = layers.get(head.removesuffix(".weight"))
    if owner is not None and owner.bits != 16:
        raise UnsupportedError(
            f"{path}: the output head was trained as a BitLinear; the engine's is a float one.", "Leave skip as it is."
        )
    if description.get("tie_word_embeddings"):
        weights.pop(head, None)
    return Described({**description, "quantization_config": quantization}, weights, path)


def write_transformer(model: Any, folder: Path, tokenizer: Tokenizer) -> Losses:
    """Write a converted transformers model as a Hugging Face folder with packed weights, which the engine opens.

    ModelError where the engine has no such architecture.
    """
    return write_folder(deployed_transformer(model, folder), folder, tokenizer=tokenizer)
