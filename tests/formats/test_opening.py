"""What a path holds is found out, or refused with a reason."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitnet import formats
from bitnet.errors import FormatError, ModelError, ParameterError, UnsupportedError


def test_the_content_decides_and_not_the_name(save, gguf_bytes):
    assert formats.open(save(gguf_bytes().whole(), "weights.bin")).kind == "gguf"


def test_a_path_may_be_text(save, gguf_bytes):
    assert formats.open(str(save(gguf_bytes().whole()))).kind == "gguf"


def test_a_folder_with_one_gguf_file_is_that_file(save, gguf_bytes):
    path = save(gguf_bytes().whole())
    (path.parent / "README.md").write_text("hello")
    assert formats.open(path.parent).path == path


def test_a_folder_with_safetensors_wins_over_a_gguf_file_in_it(save, gguf_bytes):
    folder = save(gguf_bytes().whole()).parent
    (folder / "config.json").write_text('{"model_type": "bitnet"}')
    save_file({"a": np.ones(1)}, folder / "model.safetensors")
    assert formats.open(folder).kind == "hf"
    assert formats.open(folder / "model.safetensors").kind == "hf"


@pytest.mark.parametrize(
    "name, data, error, says",
    [
        ("m.gguf", b"", FormatError, "empty"),
        ("m.gguf", b"GG", FormatError, "begins with b'GG'"),
        ("m.gguf", b"<html>not found</html>", FormatError, "begins with b'<htm'"),
        ("m.gguf", b"tjgg" + bytes(40), UnsupportedError, "before GGUF"),
        ("m.pt", b"hello", UnsupportedError, "pickle"),
        ("m.gguf", b"PK\x03\x04" + bytes(40), UnsupportedError, "pickle"),
        ("m.gguf", b"\x80\x02}q\x00.", UnsupportedError, "pickle"),
        ("m.safetensors", b"\x02\0\0\0\0\0\0\0{}", FormatError, "no config.json"),
    ],
)
def test_other_files_are_refused_with_a_reason(save, name, data, error, says):
    with pytest.raises(error, match=says):
        formats.open(save(data, name))


@pytest.mark.parametrize(
    "names, error, says",
    [
        ([], FormatError, "lacks a model"),
        (["config.json"], FormatError, r"lacks \*.safetensors"),
        (["model.safetensors"], FormatError, "lacks config.json"),
        (["a.gguf", "b.gguf"], ParameterError, "2 GGUF files.\nName one of them: a.gguf, b.gguf"),
        (["config.json", "pytorch_model.bin"], UnsupportedError, "pickle"),
    ],
)
def test_folders_without_a_model_are_refused_with_a_reason(tmp_path, names, error, says):
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(error, match=says):
        formats.open(tmp_path)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match="pipe"):
        formats.open(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match="pipe"):
        formats.open(tmp_path)


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "m.gguf").symlink_to(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="links"):
        formats.open(tmp_path / "m.gguf")


@pytest.mark.parametrize("path", ["missing.gguf", "a\0b", "x" * 5000, "/dev/null", "/dev/zero"])
def test_a_path_that_is_no_file_is_refused(path):
    with pytest.raises(ModelError):
        formats.open(path)


def test_a_file_that_may_not_be_read_is_refused(save, gguf_bytes, monkeypatch):
    path = save(gguf_bytes().whole())

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(ModelError, match="Permission denied"):
        formats.open(path)


def test_a_read_that_fails_is_a_format_error(save, gguf_bytes, monkeypatch):
    path = save(gguf_bytes().whole())

    def fail(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(FormatError, match="Input/output error"):
        formats.open(path)


def test_short_reads_are_continued(save, gguf_bytes, monkeypatch):
    path, preadv = save(gguf_bytes().whole()), os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:5]], offset))
    assert formats.open(path).architecture == "bitnet-b1.58"


def test_no_file_stays_open_after_a_refusal(save):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    path = save(b"GGUF\x03\0\0\0" + b"\xff" * 16)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FormatError):
            formats.open(path)
    assert len(os.listdir("/proc/self/fd")) <= before
