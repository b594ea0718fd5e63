"""Models come from a hub whole, or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_stand_in import StandIn

from bitnet import BitNet
from bitnet.errors import (
    AccessError,
    DownloadError,
    HubError,
    NotFoundError,
    OfflineError,
    RateLimitError,
    ResourceError,
    UnsupportedError,
)
from bitnet.hub import Name, cache, download, locate

BIG = hashlib.shake_128(b"weights").digest(24 << 20)  # more than huggingface_hub takes at a time


def contents(repo: str) -> list[str]:
    """What has a name in the cache."""
    return [file.name for file in cache.files(cache.repository(repo) / "snapshots")]


def test_a_model_is_fetched_once_and_runs(hub: StandIn, tiny_gguf: Path) -> None:
    hub.add("org/tiny", {"ggml-model-i2_s.gguf": tiny_gguf.read_bytes(), "README.md": b"# tiny"})
    with BitNet.from_pretrained("org/tiny", backend="reference") as model:
        text = model.generate("a", max_tokens=2, temperature=0)
    with BitNet(tiny_gguf, backend="reference") as model:
        assert model.generate("a", max_tokens=2, temperature=0) == text
    before = len(hub.requests)
    path = locate("org/tiny:I2_S")
    assert path.read_bytes() == tiny_gguf.read_bytes() and len(hub.requests) == before
    assert hub.fetched("ggml-model-i2_s.gguf") == [""] and hub.fetched("README.md") == []


def test_a_folder_comes_without_code_and_pickles(hub: StandIn, folder: dict[str, bytes]) -> None:
    others = {
        "modeling_bitnet.py": b"import os",
        "pytorch_model.bin": b"PK",
        "tf_model.h5": b"x",
        "training_args.bin": b"P",
    }
    hub.add("org/folder", {**folder, **others})
    path = locate("org/folder")
    assert sorted(file.name for file in cache.files(path)) == sorted(folder)
    with BitNet(path, backend="reference") as model:
        assert model.generate("a", max_tokens=2, temperature=0) is not None


def test_what_other_tools_fetched_is_found(hub: StandIn, tiny_gguf: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("org/tiny", {"tiny-TQ2_0.gguf": tiny_gguf.read_bytes()})
    theirs = hf_hub_download("org/tiny", "tiny-TQ2_0.gguf", cache_dir=cache.folder(), endpoint=hub.url)
    before = len(hub.requests)
    assert locate("org/tiny") == Path(theirs) and len(hub.requests) == before


def test_others_find_what_we_fetched(hub: StandIn, tiny_gguf: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    hub.add("org/tiny", {"tiny-TQ2_0.gguf": tiny_gguf.read_bytes()})
    path = locate("org/tiny")
    assert try_to_load_from_cache("org/tiny", "tiny-TQ2_0.gguf", cache_dir=cache.folder()) == str(path)


def test_a_download_goes_on_where_it_broke_off(hub: StandIn) -> None:
    repository = hub.add("org/big", {"big-F16.gguf": BIG})
    hub.stop_after = 15 << 20
    with pytest.raises(HubError):
        locate("org/big")
    assert contents("org/big") == [] and cache.find(Name("org/big")) is None
    hub.repositories["org/big"] = repository
    assert locate("org/big").read_bytes() == BIG
    resumed = hub.fetched("big-F16.gguf")[-1]
    assert resumed.startswith("bytes=") and 0 < int(resumed[6:-1]) <= 15 << 20


def test_what_has_another_hash_is_thrown_away(hub: StandIn) -> None:
    data = b"GGUF" + bytes(1000)
    hub.add("org/bad", {"bad-F16.gguf": data}, served={"bad-F16.gguf": data[:-1] + b"\1"})
    with pytest.raises(DownloadError, match="thrown away"):
        locate("org/bad")
    blobs = cache.repository("org/bad") / "blobs"
    assert contents("org/bad") == [] and not any(blobs.iterdir())


def test_a_partial_file_of_something_else_is_not_believed(hub: StandIn) -> None:
    repository = hub.add("org/big", {"big-F16.gguf": BIG})
    partial = cache.repository("org/big") / "blobs" / f"{repository.etag('big-F16.gguf')}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1 << 20))
    with pytest.raises(DownloadError):
        locate("org/big")
    assert locate("org/big").read_bytes() == BIG


def test_a_small_file_with_another_hash_leaves_no_folder(hub: StandIn, folder: dict[str, bytes]) -> None:
    hub.add("org/folder", folder, served={"config.json": folder["config.json"].replace(b"2", b"3", 1)})
    with pytest.raises(DownloadError, match=r"config\.json"):
        locate("org/folder")
    assert contents("org/folder") == []


@pytest.mark.parametrize(
    "status, code, kind, hint",
    [
        (401, "", AccessError, "HF_TOKEN"),
        (404, "RepoNotFound", NotFoundError, "--known"),
        (403, "GatedRepo", AccessError, "HF_TOKEN"),
        (403, "", AccessError, "hf auth login"),
        (429, "", RateLimitError, "7 seconds"),
        (500, "", HubError, "later"),
    ],
)
def test_a_refusal_says_what_to_do(hub: StandIn, status: int, code: str, kind: type[HubError], hint: str) -> None:
    hub.add("org/shut", {}, status=status, code=code)
    with pytest.raises(kind) as caught:
        locate("org/shut")
    assert type(caught.value) is kind and hint in caught.value.hint


def test_what_the_hub_has_not_is_not_found(hub: StandIn) -> None:
    with pytest.raises(NotFoundError, match="org/none"):
        locate("org/none")


def test_no_network_is_said_so(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server.server_close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match="cannot be reached"):
        locate("org/tiny")


@pytest.mark.parametrize("switch", ["HF_HUB_OFFLINE", "BITNET_OFFLINE"])
def test_offline_asks_nobody(hub: StandIn, monkeypatch: pytest.MonkeyPatch, switch: str, tiny_gguf: Path) -> None:
    hub.add("org/tiny", {"tiny-TQ2_0.gguf": tiny_gguf.read_bytes()})
    monkeypatch.setenv(switch, "1")
    with pytest.raises(OfflineError) as caught:
        locate("org/tiny")
    assert "bitnet pull org/tiny" in caught.value.hint and hub.requests == []
    monkeypatch.delenv(switch)
    path = locate("org/tiny")
    monkeypatch.setenv(switch, "1")
    assert locate("org/tiny") == path


def test_a_repository_of_pickles_is_refused(hub: StandIn) -> None:
    hub.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"PK"})
    with pytest.raises(UnsupportedError, match="pickled"):
        locate("org/pickled")


def test_a_disk_without_room_is_seen_before(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/big", {"big-F16.gguf": BIG})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(ResourceError, match=r"takes 25\.2 MB of disk; .* has 1\.05 MB"):
        locate("org/big")
    assert hub.fetched("big-F16.gguf") == []


def test_an_incomplete_folder_is_completed(hub: StandIn, folder: dict[str, bytes]) -> None:
    hub.add("org/folder", folder)
    path = locate("org/folder")
    (path / "tokenizer.json").unlink()
    assert cache.find(Name("org/folder")) is None
    assert locate("org/folder") == path and (path / "tokenizer.json").exists()


def test_what_is_in_the_cache_opens_without_huggingface_hub(hub: StandIn, tiny_gguf: Path) -> None:
    hub.add("org/tiny", {"tiny-TQ2_0.gguf": tiny_gguf.read_bytes()})
    locate("org/tiny")
    code = (
        "import sys; from bitnet import BitNet\n"
        "BitNet('org/tiny', backend='reference').generate('a', max_tokens=1)\n"
        "print('huggingface_hub' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout == "False\n", result.stderr
