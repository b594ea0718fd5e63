"""A model known by its config.json: as a checkpoint that trained weights are put into, and from any model file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.convert.config_json import ACTIVATIONS, CLASSES, NAMES, gemma3, rotary
from bitnet.convert.gguf import rotated_heads
from bitnet.convert.source import reordered
from bitnet.errors import ModelError, ParameterError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.models.load import open_model, resolve, scaled
from bitnet.models.rotation import read_rotations
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor, rows_of
from bitnet.quant.threshold import Rule, unit_count
from bitnet.train.quantizers import TERNARY, Recipe

DROPPED = ("quantization_config", "auto_map", "dtype", "torch_dtype")  # of config.json: what the weights were stored as
INPUT_NORMS = {"use_rms_norm": True, "quant_method": "bitnet", "linear_class": "autobitlinear"}


class Described(Checkpoint):
    """A Hugging Face folder in memory. path: whose tokenizer files it has, and how it is called."""

    kind = "hf"

    def __init__(
        self, description: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None, path: Path = Path("config")
    ) -> None:
        self.path, self.metadata, self.weights = path, dict(description), dict(weights or {})
        self.architecture = str(self.metadata.get("model_type", ""))

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {name: described(name, tensor) for name, tensor in self.weights.items()}

    def read(self, name: str) -> Tensor:
        return self.weights[name]


class Heard(dict[str, Any]):
    """A description that knows what it was asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def refuse_misspelt(description: Mapping[str, Any]) -> None:
    """ParameterError where a key that nothing reads is nearly one that is missing; a config.json may have others."""
    checkpoint = Described(description)
    checkpoint.metadata = heard = Heard(description)
    with suppress(ModelError):  # which may come of the misspelt key
        open_model(checkpoint)
    for key in description.keys() - heard.asked:
        if near := get_close_matches(str(key), heard.asked - description.keys(), 1, 0.85):
            raise ParameterError(f"model.config has an unknown key {key!r}.", f"Did you mean {near[0]!r}?")


def described(name: str, tensor: Tensor) -> TensorInfo:
    if isinstance(tensor, TernaryTensor):
        return TensorInfo(name, tensor.shape, "packed", tensor.codes.size // 4 + 4)
    return TensorInfo(name, tensor.shape, tensor.dtype, tensor.data.nbytes)


def description_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config.json that says what this checkpoint is, of whatever kind; q and k as Hugging Face orders them."""
    module, config, _ = open_model(checkpoint)
    model = module.__name__.rpartition(".")[-1]
    said = dict(checkpoint.metadata) if checkpoint.kind == "hf" else {}
    architecture, model_type = CLASSES[model]
    description = {key: value for key, value in said.items() if key not in DROPPED}
    description |= {"architectures": [architecture], "model_type": model_type}
    description |= {name: getattr(config, name) for name in NAMES}
    description["hidden_activation" if model == "gemma3" else "hidden_act"] = ACTIVATIONS[config.hidden_act]
    if checkpoint.kind == "gguf":
        description |= rotary(config) | (gemma3(config) if model == "gemma3" else {})
    if config.input_norm_eps is not None:
        description["quantization_config"] = {**INPUT_NORMS, "rms_norm_eps": config.input_norm_eps}
    return description


def with_sub_norms(description: Mapping[str, Any]) -> dict[str, Any]:
    """SubLN (arXiv:2510.13998): a norm before o_proj and down_proj, which makes a Llama a BitNet with SiLU.

    Architectures for which there is no such model get the norm before every projection that BitNet embedding models
    have; a model that has norms of either kind stays as it is.
    """
    if description["model_type"] == "llama":
        return {**description, "architectures": [CLASSES["bitnet"][0]], "model_type": "bitnet"}
    if description["model_type"] == "bitnet" or description.get("quantization_config"):
        return dict(description)
    eps = description.get("rms_norm_eps", 1e-6)
    return {**description, "quantization_config": {**INPUT_NORMS, "rms_norm_eps": eps}}


def masters_of(checkpoint: Checkpoint, recipe: Recipe) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor by our name as float32, as the model computes with it.

    A ternary projection is scaled so that absmean finds its scale again: the mean of |w| is smaller, by the zeros.
    """
    module, config, shapes = open_model(checkpoint)
    found = resolve(checkpoint, shapes)
    if read_rotations(checkpoint, found):
        raise UnsupportedError(f"{checkpoint.path}: its weights are rotated; training such a model is not supported.")
    sanitize = getattr(module, "sanitize", None)
    for name, spelled in found.items():
        tensor = scaled(checkpoint.read(spelled), spelled, checkpoint)
        if isinstance(tensor, TernaryTensor) and recipe.bits(name) == TERNARY and recipe.rule.name == "absmean":
            tensor = DenseTensor(absmean_masters(tensor.dequantize(), recipe.rule))
        if sanitize:
            tensor = sanitize(name, tensor, checkpoint.kind)
        heads = rotated_heads(name, config) if config.rope_style == "interleaved" else 0
        if heads:
            read = partial(rows_of, DenseTensor(tensor.dequantize()))
            tensor = reordered(read, tensor.shape[0] // heads, True, slice(None))
        yield name, np.ascontiguousarray(tensor.dequantize())


def absmean_masters(weight: NDArray[np.float32], rule: Rule) -> NDArray[np.float32]:
    n, k = weight.shape
    units = weight.reshape(unit_count(n, k, rule.group), -1)
    kept = (units != 0).mean(1, dtype=np.float32)[:, None]
    return np.divide(units, kept, out=np.zeros_like(units), where=kept > 0).reshape(weight.shape)
