"""Trains the two small models whose GGUF files the goldens compare with llama.cpp: a few minutes on one core.

Their text is the project's own story grammar, so nothing but this repository is needed. Random weights would not do:
their likeliest token wins by nothing, and every difference in rounding would change it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bitnet.backends.torch import Packed, TorchOps, ternarize
from bitnet.models import bitnet, llama
from bitnet.models.decoder import Config
from bitnet.tokenizer import Tokenizer
from bitnet.train.stories import stories

LENGTH, ROWS, STORIES = 128, 8, 6000
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
SHARED = {
    "vocab_size": 640,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
}


@dataclass(frozen=True)
class Recipe:
    """config: the config.json to write. module: what defines the model. steps: updates of ROWS * LENGTH tokens."""

    module: ModuleType
    config: dict[str, Any]
    tokenizer: str  # "sentencepiece" or "byte-level"
    steps: int = 600


RECIPES = {
    # What 1bitLLM/bitnet_b1_58-* are: SiLU, sub-norms, tied, every head its own keys, SentencePiece.
    "bitnet-silu": Recipe(
        bitnet,
        SHARED
        | {
            "model_type": "bitnet",
            "architectures": ["BitNetForCausalLM"],
            "hidden_act": "silu",
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
        "sentencepiece",
    ),
    # What Llama3-8B-1.58 and Falcon3 are, with all that can differ: heads wider than hidden / heads, shared keys,
    # an output head of its own, scaled rotary frequencies, Llama 3's tokenizer.
    "llama": Recipe(
        llama,
        SHARED
        | {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "tie_word_embeddings": False,
            "quantization_config": {
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "online",
            },
        },
        "byte-level",
    ),
}


def train(name: str, folder: Path) -> None:
    """A Hugging Face folder with float masters and a tokenizer; found again if it is there already."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES[name]
    (folder / "config.json").write_text(json.dumps(recipe.config, indent=1))
    texts = [story.text for story in islice(stories(seed=11), STORIES)]
    TOKENIZERS[recipe.tokenizer](texts, folder)
    tokenizer = Tokenizer.from_folder(folder, recipe.config["vocab_size"])
    print(f"{name}: {tokenizer.vocab_size} tokens")
    masters = optimize(recipe, config_of(folder), batches(tokenizer, texts))
    spelled = {n if n == "lm_head" else f"model.{n}": m for n, m in masters.items()}
    save_file({f"{n}.weight": m for n, m in spelled.items()}, folder / "model.safetensors")


def config_of(folder: Path) -> Config:
    from bitnet.formats.checkpoint import Checkpoint
    from bitnet.models.hyperparameters import read_config

    class Unwritten(Checkpoint):
        kind, path = "hf", folder
        metadata = json.loads((folder / "config.json").read_text())
        architecture = metadata["model_type"]

        def tensors(self) -> dict[str, Any]:
            return {}

        def read(self, name: str) -> Any:
            raise KeyError(name)

    return read_config(Unwritten())


def batches(tokenizer: Tokenizer, texts: list[str]) -> Iterator[torch.Tensor]:
    """Windows (ROWS, LENGTH + 1) of all stories in one row, each begun by the model's first token."""
    ids = np.concatenate([tokenizer.encode(text) for text in texts])
    random = np.random.default_rng(0)
    while True:
        starts = random.integers(0, len(ids) - LENGTH - 1, ROWS)
        yield torch.from_numpy(np.stack([ids[s : s + LENGTH + 1] for s in starts]).astype(np.int64))


class TrainStep:
    want = None

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids, self.positions = ids.reshape(-1), torch.arange(LENGTH).repeat(ROWS)


def optimize(recipe: Recipe, config: Config, windows: Iterator[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Float masters, by our names, after `recipe.steps` updates of Adam with a cosine to zero."""
    torch.manual_seed(0)
    masters = {
        name: torch.nn.Parameter(torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * shape[1] ** -0.5)
        for name, shape in recipe.module.shapes(config).items()
    }
    with torch.no_grad():
        masters["embed_tokens"].mul_(0.5)
    ops = TorchOps(torch.float32, LENGTH, config.rope)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
    optimizer = torch.optim.AdamW(masters.values(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 40) * 0.5 * (1 + math.cos(math.pi * s / recipe.steps))
    )
    for step, window in zip(range(recipe.steps), windows, strict=False):
        weights: dict[str, Any] = dict(masters)
        rounded = {name: ternarize(m.detach(), torch.float32) for name, m in masters.items() if name.endswith("_proj")}
        for ternary in rounded.values():
            ternary.codes.requires_grad_()
        weights |= rounded
        weights.setdefault("lm_head", masters["embed_tokens"])
        logits = recipe.module.Model(config, weights, ops)(TrainStep(window[:, :-1]), Packed(ROWS, mask))
        loss = torch.nn.functional.cross_entropy(logits, window[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        for name, ternary in rounded.items():  # straight through the rounding
            masters[name].grad = ternary.codes.grad
        torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    return {name: master.detach() for name, master in masters.items()}


def train_byte_level(texts: list[str], folder: Path) -> None:
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = SHARED["vocab_size"] - len(LLAMA3_CONTROL)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(LLAMA3_CONTROL)
    begin = LLAMA3_CONTROL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": begin, "eos_token": LLAMA3_CONTROL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def train_sentencepiece(texts: list[str], folder: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:2000]),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=SHARED["vocab_size"],
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "add_eos_token": False}))


TOKENIZERS = {"byte-level": train_byte_level, "sentencepiece": train_sentencepiece}
