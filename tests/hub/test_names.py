"""What a name means, and which files of a repository it picks."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest

from bitnet.errors import NotFoundError, ParameterError, UnsupportedError
from bitnet.hub import KNOWN, Name, cache, locate, parse
from bitnet.hub.choice import File, choose, label
from bitnet.models.synthetic import SyntheticCheckpoint

GGUF = "microsoft/bitnet-b1.58-2B-4T-gguf"
BONSAI = ("T-8B-F16.gguf", "T-8B-Q2_0.gguf", "T-8B-Q2_0_g64.gguf", "T-8B-PQ2_0.gguf")


@pytest.mark.parametrize(
    "text, repo, quant",
    [
        (GGUF, GGUF, ""),
        (f"{GGUF}:I2_S", GGUF, "I2_S"),
        (f"https://huggingface.co/{GGUF}", GGUF, ""),
        (f"hf.co/{GGUF}:I2_S", GGUF, "I2_S"),
        (f"hf://{GGUF}/", GGUF, ""),
        ("2b-4t", GGUF, "I2_S"),
        ("2B-4T", GGUF, "I2_S"),
        ("org/name:sub/file.gguf", "org/name", "sub/file.gguf"),
    ],
)
def test_names(text: str, repo: str, quant: str) -> None:
    assert parse(text) == Name(repo, quant)


@pytest.mark.parametrize(
    "text",
    ["", "model.gguf", "models/a.gguf", "a/b.safetensors", "./a/b", "/a/b", "a/b/c", "../a", "~/a", "a//b", "a/b--c",
     "a/..", "a\\b", "a/b\0", "-a/b", "org/", "/", ":I2_S", "tests/none"],
)  # fmt: skip
def test_paths_are_no_names(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where tests/ is a folder
    assert parse(text) is None
    assert locate(text) == Path(text)


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("2b-4t").write_bytes(b"")
    assert locate("2b-4t") == Path("2b-4t")


@pytest.mark.parametrize(
    "name, quant",
    [
        ("ggml-model-i2_s.gguf", "I2_S"),
        ("bitnet-embeddings-0.6b-bf16-i2_s.gguf", "I2_S"),
        ("T-8B-Q2_0_g64.gguf", "Q2_0_g64"),
        ("T-8B-Q1_0-g128.gguf", "Q1_0_g128"),
        ("x.Q4_K_M.gguf", "Q4_K_M"),
        ("x_q5_k_s.gguf", "Q5_K_S"),
        ("IQ4_XS/x-IQ4_XS.gguf", "IQ4_XS"),
        ("ggml-model-tl2.gguf", "TL2"),
        ("model.gguf", "model.gguf"),
    ],
)
def test_a_file_name_tells_how_it_is_quantised(name: str, quant: str) -> None:
    assert label(name) == quant


def names(*files: str, quant: str = "") -> list[str]:
    return [file.name for file in choose("org/name", [File(name, 1) for name in files], quant)]


def test_the_order_decides_where_nobody_says() -> None:
    assert names(*BONSAI) == ["T-8B-PQ2_0.gguf"]
    assert names("a-TQ1_0.gguf", "a-I2_S.gguf", "config.json", "model.safetensors") == ["a-I2_S.gguf"]
    assert names("a-F16.gguf", "config.json", "model.safetensors") == ["model.safetensors", "config.json"]
    assert names("only.gguf", "mmproj-F16.gguf") == ["only.gguf"]


def test_a_quant_picks_its_file() -> None:
    assert names(*BONSAI, quant="q2_0") == ["T-8B-Q2_0.gguf"]
    assert names("T-8B-Q2_0_g64.gguf", "T-8B-F16.gguf", quant="Q2_0") == ["T-8B-Q2_0_g64.gguf"]
    assert names(*BONSAI, quant="T-8B-F16.gguf") == ["T-8B-F16.gguf"]
    assert names("a-I2_S.gguf", "config.json", "model.safetensors", quant="safetensors")[-1] == "config.json"


def test_what_is_not_there_is_said_with_what_is() -> None:
    with pytest.raises(NotFoundError, match="has no I2_S; it has F16") as caught:
        names(*BONSAI, quant="I2_S")
    assert "org/name:F16" in caught.value.hint


@pytest.mark.parametrize("files", [("a-Q8_0.gguf", "b-F16.gguf"), ("a-I2_S.gguf", "b-I2_S.gguf")])
def test_equals_are_not_chosen_between(files: tuple[str, ...]) -> None:
    with pytest.raises(ParameterError, match="which one"):
        names(*files)


@pytest.mark.parametrize(
    "files, why",
    [
        ((), "no model"),
        (("README.md", "config.json"), "no model"),
        (("pytorch_model.bin", "config.json"), "pickled"),
        (("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"), "in parts"),
        (("../evil.gguf", "/etc/evil.gguf", "a/../b.gguf"), "no model"),
    ],
)
def test_repositories_without_a_model(files: tuple[str, ...], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        names(*files)


def test_a_folder_is_its_weights_and_what_reads_them() -> None:
    index, parts = (
        "model.safetensors.index.json",
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    )
    found = names(
        "config.json", index, *parts, "consolidated.safetensors", "tokenizer.json", "run.py", "sub/x.safetensors"
    )
    assert found == [*parts, index, "tokenizer.json", "config.json"]
    assert "1_Pooling/config.json" in names("config.json", "a.safetensors", "1_Pooling/config.json", "modules.json")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.folder() == Path("/x/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "/home")
    assert cache.folder() == Path("/home/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")
    assert cache.folder() == Path("/hub")


@pytest.mark.parametrize(
    "name, shape, of_float",
    [
        ("2b-4t", "2B-4T", 4),
        ("2b-4t-packed", "2B-4T", 2),
        ("llama3-8b", "8B", 2),
        ("falcon3-1b", "Falcon3-1B", 2),
        ("falcon3-3b", "Falcon3-3B", 2),
        ("falcon3-7b", "Falcon3-7B", 2),
        ("falcon3-10b", "Falcon3-10B", 2),
    ],
)
def test_known_sizes_follow_from_the_shapes(name: str, shape: str, of_float: int) -> None:
    """Two bits a ternary weight; I2_S has 32 bytes behind each, a packed folder a scale of two; norms are floats."""
    known = next(each for each in KNOWN if each.name == name)
    sizes = [(t.dtype, prod(t.shape)) for t in SyntheticCheckpoint(shape).tensors().values()]
    assert known.parameters == sum(count for _, count in sizes)
    of_type = {
        "packed": lambda n: n // 4 + (32 if of_float == 4 else 2),
        "F16": lambda n: 2 * n,
        "F32": lambda n: of_float * n,
    }
    assert known.nbytes == sum(of_type[dtype](count) for dtype, count in sizes)


def test_known_names_are_names() -> None:
    assert len({known.name for known in KNOWN}) == len(KNOWN)
    for known in KNOWN:
        assert parse(known.repo) == Name(known.repo) and parse(known.name) == Name(known.repo, known.quant)
