"""Models small enough to be made for a test run, and read back like any other file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before NumPy and PyTorch are loaded: the models of tests are too small to be shared by threads, and as many processes
# run them as there are processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from bitnet import backends, models
from bitnet.bench.vocabulary import byte_tokenizer
from bitnet.convert.gguf import write_checkpoint
from bitnet.models import Decoder
from bitnet.models.synthetic import SyntheticCheckpoint

pytest_plugins = ["repeats"]
settings.register_profile("bitnet", deadline=None)  # no test depends on the clock
settings.load_profile("bitnet")


@pytest.fixture(scope="session", autouse=True)
def no_profiles_of_the_tester(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.delenv("BITNET_NO_PROFILE", raising=False)
        yield


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of two layers that opens, tokenizes bytes and generates (nonsense)."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_checkpoint(SyntheticCheckpoint("tiny"), path, tokenizer=byte_tokenizer())
    return path


@pytest.fixture
def tiny_model() -> Decoder:
    """The same weights on the reference backend."""
    return models.load(SyntheticCheckpoint("tiny"), backends.make("reference"))
