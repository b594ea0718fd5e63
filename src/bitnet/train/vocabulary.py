"""The built-in model's tokenizer: byte-level BPE over the text that the model is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bitnet.tokenizer.chat import BITNET

SPECIAL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
BEGIN, END, END_OF_TURN = range(3)
VOCABULARY_SIZE = 4096
SMALLEST = 256 + len(SPECIAL_TOKENS)  # every byte is a token

# Llama 3's rule, which GGUF names "llama-bpe" in tokenizer.ggml.pre.
LLAMA_BPE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Every byte is in the alphabet, so any text can be encoded."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_BPE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """As Hugging Face folders have it, with the chat template that conversations are written in."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    begin, end, _ = SPECIAL_TOKENS
    said = {"bos_token": begin, "eos_token": end, "add_bos_token": True, "chat_template": BITNET}
    (folder / "tokenizer_config.json").write_text(json.dumps(said, indent=2) + "\n")
