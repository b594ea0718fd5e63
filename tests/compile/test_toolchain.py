"""Which compiler links a library."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("tvm", reason="compiling needs its extra: pip install 'bitnet[tvm]'")

from bitnet.compile import toolchain
from bitnet.errors import ParameterError


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("BITNET_CC", raising=False)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_zig_stands_in_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: name == "ziglang")
    command = toolchain.compiler(machine)
    assert command == [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu"]


def test_where_there_is_none_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    with pytest.raises(ParameterError) as caught:
        toolchain.compiler("aarch64")
    assert "pip install ziglang" in str(caught.value.hint)


def test_the_environment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_CC", "my-cc --sysroot '/a b'")
    assert toolchain.compiler("aarch64") == ["my-cc", "--sysroot", "/a b"]
