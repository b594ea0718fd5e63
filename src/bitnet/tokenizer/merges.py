"""SentencePiece stores a score per token, BPE an ordered list of merges: from the one to the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bitnet.errors import FormatError

MAX_PIECE = 256  # characters; a longer token is not split, so that a hostile one does not cost quadratic time
MAX_CHARACTERS = 1 << 22  # of all tokens together: twice those of the largest vocabulary

Merge = tuple[str, str]


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], excluded: Collection[str] = frozenset()
) -> list[Merge]:
    """Every way to make a token of two others, the highest score first, as transformers' converter orders them.

    `excluded` tokens (control, byte) neither merge nor are merged, so that no text can spell them.
    """
    ids = {token: i for i, token in enumerate(tokens) if token not in excluded}
    characters = sum(map(len, ids))
    if characters > MAX_CHARACTERS:
        raise FormatError(f"The tokens have {characters:,} characters; at most {MAX_CHARACTERS:,} are accepted.")
    ranked = [
        (-scores[i], -len(token[:cut]), -(len(token) - cut), i, (token[:cut], token[cut:]))
        for token, i in ids.items()
        if len(token) <= MAX_PIECE
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    ranked.sort(key=lambda entry: entry[:4])
    return [merge for *_, merge in ranked]


def scores_from_merges(tokens: Sequence[str], merges: Sequence[Merge]) -> list[float]:
    """Scores that keep the order of merges: minus the rank at which a token is first made.

    Single characters and special tokens are never made, and get 0, as SentencePiece gives control tokens.
    """
    rank: Mapping[str, int] = {left + right: i for i, (left, right) in reversed(list(enumerate(merges)))}
    return [-float(rank.get(token, 0)) for token in tokens]
