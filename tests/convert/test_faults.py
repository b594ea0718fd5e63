"""What goes wrong while a model is written: the target is whole or absent, and the next one may begin."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from bitnet import formats
from bitnet.convert import convert
from bitnet.convert.folder import write_folder
from bitnet.errors import ModelError, ParameterError, ResourceError
from bitnet.formats.atomic import replacing, replacing_folder

TARGETS = ("m.gguf", "folder")
SLOW = """
import sys, time
from bitnet.convert import convert
def progress(done, total):
    if done > total // 3:
        print("here", flush=True)
        time.sleep(60)
convert(sys.argv[1], sys.argv[2], progress=progress)
"""
LIMITED = """
import resource, sys
from bitnet.convert import convert
from bitnet.errors import ResourceError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert(sys.argv[1], sys.argv[2])
except ResourceError as error:
    print(error.message)
"""


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "hf"
    write_folder(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), path, tokenizer=tiny.tokenizer())
    return path


def start(code: str, *arguments: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=-1, text=True, **options)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_conversion_leaves_nothing_that_is_in_the_way(target: str, hf: Path, tmp_path: Path) -> None:
    process = start(SLOW, hf, tmp_path / target)
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    with pytest.raises(ResourceError, match=f"Another process is writing {target}"):
        convert(hf, tmp_path / target)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert names(tmp_path) == [f".{target}.partial"]
    convert(hf, tmp_path / target)
    assert names(tmp_path) == [target]
    with formats.open(tmp_path / target) as opened:
        tiny.load(opened)


@pytest.mark.parametrize("target", TARGETS)
def test_an_interrupted_conversion_leaves_nothing(target: str, hf: Path, tmp_path: Path) -> None:
    process = start(
        SLOW,
        hf,
        tmp_path / target,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.readline() == "here\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode != 0 and names(tmp_path) == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_full_disk_is_said_and_leaves_nothing(target: str, hf: Path, tmp_path: Path) -> None:
    out, _ = start(LIMITED, hf, tmp_path / target).communicate()
    assert f"{target} cannot be written: File too large" in out
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", TARGETS)
def test_too_little_space_is_said_before_anything_is_written(
    target: str, hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"takes [\d,]+ bytes; 1,000 are free"):
        convert(hf, tmp_path / target)
    assert names(tmp_path) == []


@pytest.mark.parametrize("target", TARGETS)
def test_what_exists_is_replaced_only_when_told(target: str, hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / target)
    with pytest.raises(ParameterError, match="exists"):
        convert(hf, tmp_path / target)
    convert(hf, tmp_path / target, force=True)
    assert names(tmp_path) == [target]


def test_only_a_model_folder_is_replaced(hf: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ParameterError, match="no model folder"):
        convert(hf, tmp_path / "photos", force=True)
    with pytest.raises(ParameterError, match="is a directory"):
        convert(hf, tmp_path / "photos", to="gguf", force=True)
    with pytest.raises(ParameterError, match="what is to be converted"):
        convert(hf, hf, force=True)
    with pytest.raises(ParameterError, match="what is to be converted"):
        convert(hf, hf.parent, force=True)
    with pytest.raises(ParameterError, match="does not exist"):
        convert(hf, tmp_path / "no" / "m.gguf")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("cut", [0, 10, 1000, 200_000])
def test_a_source_that_is_cut_short_is_refused(cut: int, target: str, hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:cut])
    with pytest.raises(ModelError):
        convert(tmp_path / "cut.gguf", tmp_path / target)
    assert names(tmp_path) == ["cut.gguf", "whole.gguf"]


def test_a_code_that_is_not_ternary_is_refused(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "a.gguf", weights="i2_s")
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    with formats.open(tmp_path / "a.gguf") as opened:
        place = opened.stored("blk.1.ffn_down.weight")
        assert place is not None
        data[place.offset + 5000] = 0xFF
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_down\.weight holds the ternary code 3"):
        convert(tmp_path / "b.gguf", tmp_path / "c.gguf", weights="tq2_0")
    assert names(tmp_path) == ["a.gguf", "b.gguf"]


def test_a_file_being_written_is_locked_for_others(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write(b"1")
        with pytest.raises(ResourceError, match="Another process is writing a"), replacing(tmp_path / "a"):
            raise AssertionError
    with replacing_folder(tmp_path / "b") as folder:
        (folder / "x").write_bytes(b"2")
        with pytest.raises(ResourceError, match="Another process is writing b"), replacing_folder(tmp_path / "b"):
            raise AssertionError
    assert names(tmp_path) == ["a", "b"] and (tmp_path / "b" / "x").read_bytes() == b"2"
