"""The rules that stretch rotary embeddings over longer contexts: divisors of their frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bitnet.errors import FormatError, UnsupportedError
from bitnet.models.metadata import Reader

Factors = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN (arXiv:2309.00071): frequencies that turn more than `beta_fast` times within the context that the model was
    first trained on stay, those that turn less than `beta_slow` times are divided by `factor`, with a ramp between.

    attention_factor: what queries and keys are multiplied with.
    """

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def factors(self, theta: float, head_dim: int) -> Factors:
        with np.errstate(all="ignore"):  # read_config refuses what comes of absurd numbers
            turns = np.array([self.beta_fast, self.beta_slow], np.float64)
            ends = head_dim * np.log(self.original_context / (2 * np.pi * turns)) / (2 * np.log(np.float64(theta)))
            low, high = np.maximum(np.floor(ends[0]), 0), np.minimum(np.ceil(ends[1]), head_dim - 1)
            ramp = np.clip((np.arange(head_dim // 2) - low) / np.maximum(high - low, 0.001), 0, 1)
            return as_float32(1 / (1 - ramp + ramp / self.factor))


def usual_attention_factor(factor: float) -> float:
    """What the paper found best for YaRN."""
    return 0.1 * math.log(factor) + 1 if factor > 1 else 1.0


def hf_scaling(rope: Reader, theta: float, head_dim: int, context: int) -> tuple[Factors | None, Yarn | None]:
    """The divisors that `rope_scaling` or `rope_parameters` of a config.json stand for; None where they are 1.

    transformers has default, linear, llama3 (arXiv:2407.21783) and yarn, and more that are not supported.
    """
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return None, None
    if kind == "linear":
        return (rope.number("factor"),) * (head_dim // 2), None
    if kind == "llama3":
        return llama3(rope, theta, head_dim, context), None
    if kind != "yarn":
        raise UnsupportedError(
            f"{rope.path}: rope scaling {kind!r} is not supported; default, linear, llama3 and yarn are."
        )
    if rope.values.get(f"{rope.prefix}truncate") is False or rope.number("mscale_all_dim", 0.0):
        raise UnsupportedError(f"{rope.path}: yarn with truncate = false or mscale_all_dim is not supported.")
    original = rope.size("max_position_embeddings", "original_max_position_embeddings", context)
    factor = rope.number("factor", context / original)
    yarn = checked(
        rope,
        Yarn(
            factor,
            original,
            rope.number("attention_factor", usual_attention_factor(factor)),
            rope.number("beta_fast", 32.0),
            rope.number("beta_slow", 1.0),
        ),
    )
    return yarn.factors(theta, head_dim), yarn


def gguf_scaling(get: Reader, theta: float, head_dim: int, context: int) -> tuple[Factors | None, Yarn | None]:
    """The same of a GGUF file's `rope.scaling.*`; a llama3 rule is the tensor rope_freqs.weight there."""
    kind = get.text("rope.scaling.type", "none")
    if kind == "none":
        return None, None
    if kind == "linear":
        return (get.number("rope.scaling.factor"),) * (head_dim // 2), None
    if kind != "yarn":
        raise UnsupportedError(f"{get.path}: rope scaling {kind!r} is not supported; none, linear and yarn are.")
    for key, neutral in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        if get.number(f"rope.scaling.{key}", neutral) != neutral:
            raise UnsupportedError(f"{get.path}: {get.prefix}rope.scaling.{key} is set, which is not supported.")
    factor = get.number("rope.scaling.factor")
    yarn = checked(
        get,
        Yarn(
            factor,
            get.size("max_position_embeddings", "rope.scaling.original_context_length", context),
            usual_attention_factor(factor) * get.number("rope.scaling.attn_factor", 1.0),
            get.number("rope.scaling.yarn_beta_fast", 32.0),
            get.number("rope.scaling.yarn_beta_slow", 1.0),
        ),
    )
    return yarn.factors(theta, head_dim), yarn


def checked(get: Reader, yarn: Yarn) -> Yarn:
    for name in ("factor", "attention_factor", "beta_fast", "beta_slow"):
        value = getattr(yarn, name)
        if not 0 < value < 1e9:
            raise FormatError(f"{get.path}: the {name} of yarn is {value}; expected a positive number.")
    return yarn


def llama3(rope: Reader, theta: float, head_dim: int, context: int) -> Factors:
    factor, low, high = (rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = rope.number("original_max_position_embeddings", context)
    with np.errstate(all="ignore"):  # read_config refuses what comes of absurd numbers
        wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
        smooth = np.clip((trained / wavelengths - low) / np.float64(high - low), 0, 1)
        return as_float32(1 / ((1 - smooth) / np.float64(factor) + smooth))


def as_float32(factors: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Factors:
    """Which is how GGUF files hold them: both kinds of file are then the same model to the bit."""
    return tuple(factors.astype(np.float32).tolist())
