"""Each kind of tokenizer three times: the library's own, ours from its folder, and ours by way of GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import small_tokenizers as small
import tokenizers

from bitnet.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trio:
    kind: str
    library: tokenizers.Tokenizer
    folder: Tokenizer
    gguf: Tokenizer


@pytest.fixture(scope="session", params=small.KINDS)
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    build, config = small.KINDS[request.param]
    library = build()
    folder = Tokenizer.from_folder(small.save(library, tmp_path_factory.mktemp(request.param), config))
    return Trio(request.param, library, folder, Tokenizer.from_gguf(folder.to_gguf()))


@pytest.fixture(scope="session")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = small.save(small.llama3(), tmp_path_factory.mktemp("llama3"), small.KINDS["llama-bpe"][1])
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = small.save(small.sentencepiece_like(), tmp_path_factory.mktemp("spm"), small.KINDS["llama"][1])
    return Tokenizer.from_folder(folder)
