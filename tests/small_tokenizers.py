"""Small tokenizers of each kind, trained on a page of text: what the tests compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bitnet.tokenizer.pre_tokenizers import LLAMA3, QWEN2

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't, and they'll run again at 10:30.",
    "Größe, naïveté, façade, élève, crème brûlée, Žižek, Łódź: the café's menu costs 1234567.89 €.",
    "Привет, мир! Как дела? Всё хорошо. Быстрая лиса прыгает через ленивую собаку.",
    "你好，世界。敏捷的棕色狐狸跳过了懒狗。今天是二〇二五年。こんにちは、世界。ありがとうございます。",
    "مرحبا بالعالم  שלום עולם  नमस्ते दुनिया  안녕하세요 세계  สวัสดีชาวโลก",
    "def f(x):\n    return x ** 2\n\n\tif x == 0:\r\n        print('zero')\n" * 2,
    "😀😃😄 👩‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 emoji and e\u0301 combined   many    spaces     here",
] * 4

LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
RULES = {"llama-bpe": (LLAMA3,), "qwen2": (QWEN2,), "smaug-bpe": (LLAMA3,)}
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hello, how are you? "}]


def byte_level(
    pre: str, special: tuple[str, ...], user_defined: tuple[str, ...] = (), in_vocab: bool = False
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in RULES[pre]]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, level])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special) if in_vocab else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in user_defined])
    if pre == "llama-bpe":
        bos = special[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def sentencepiece_like(metaspace: bool = False) -> Tokenizer:
    """As Llama 2's: a prefix space, ▁ for spaces, bytes for what the alphabet lacks."""
    rules = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(rules)
    words = pre_tokenizers.Split("▁", "merged_with_next")
    trained.pre_tokenizer = words
    trainer = trainers.BpeTrainer(vocab_size=500, limit_alphabet=80, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    learnt = json.loads(trained.to_str())["model"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    vocab = {token: i for i, token in enumerate([*special, *pieces])}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence(rules)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": config or {}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def llama3() -> Tokenizer:
    return byte_level("llama-bpe", LLAMA3_SPECIAL)


def qwen2() -> Tokenizer:
    return byte_level("qwen2", QWEN_SPECIAL, user_defined=("<think>", "</think>"))


def gpt2() -> Tokenizer:
    return byte_level("gpt-2", ("<|endoftext|>",), in_vocab=True)


KINDS = {
    "llama-bpe": (llama3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}),
    "qwen2": (qwen2, {"eos_token": "<|im_end|>", "add_bos_token": False, "pad_token": "<|endoftext|>"}),
    "gpt-2": (gpt2, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "llama": (sentencepiece_like, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "metaspace": (lambda: sentencepiece_like(True), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}
