"""A vocabulary in a SentencePiece tokenizer.model, where there is no tokenizer.json; needs `sentencepiece`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.errors import FormatError, UnsupportedError
from bitnet.tokenizer.gguf import space_normalizer
from bitnet.tokenizer.huggingface import finish
from bitnet.tokenizer.merges import merges_from_scores
from bitnet.tokenizer.vocabulary import SPACE, SpecialIds, TokenType, Vocabulary, check_tokens

if TYPE_CHECKING:
    from bitnet.tokenizer.huggingface import Settings


def read_sentencepiece(path: Path, settings: Settings, vocab_size: int | None) -> Vocabulary:
    model = _load(path)
    tokens = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    check_tokens(tokens)
    scores = [model.get_score(i) for i in range(len(tokens))]
    types = [_type(model, i) for i in range(len(tokens))]
    if any(score % 1 for score, kind in zip(scores, types, strict=True) if kind == TokenType.NORMAL):
        # A BPE model's scores are minus the rank of a merge, a unigram model's are log-probabilities.
        raise UnsupportedError(f"{path.name} is a SentencePiece unigram model.", "Supported: BPE.")
    merges = merges_from_scores(
        tokens, scores, {t for t, kind in zip(tokens, types, strict=True) if kind != TokenType.NORMAL}
    )
    add_space_prefix = "".join(model.encode("a", out_type=str)).startswith(SPACE)
    bos, eos, unk, pad = (
        i if i >= 0 else None for i in (model.bos_id(), model.eos_id(), model.unk_id(), model.pad_id())
    )
    vocabulary = Vocabulary(
        "llama",
        tokens,
        types,
        merges,
        normalizer=space_normalizer(add_space_prefix),
        pre_tokenizer=None,
        special=SpecialIds(bos=bos, eos=eos, unk=unk, pad=pad),
        ends=frozenset(),
        add_space_prefix=add_space_prefix,
        add_bos=True,
    )
    return finish(vocabulary, settings, vocab_size)


def _load(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise UnsupportedError(
            f"{path} is a SentencePiece model, and there is no tokenizer.json.",
            "Install the extra: pip install 'bitnet[sentencepiece]'.",
        ) from error
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise FormatError(f"{path.name} is not a SentencePiece model: {error}") from error


def _type(model: Any, i: int) -> TokenType:
    if model.is_unknown(i):
        return TokenType.UNKNOWN
    if model.is_control(i):
        return TokenType.CONTROL
    if model.is_byte(i):
        return TokenType.BYTE
    if model.is_unused(i):
        return TokenType.UNUSED
    return TokenType.NORMAL
