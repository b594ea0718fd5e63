"""What holds for every command: help, exit codes, and errors of three lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet.cli.main import COMMANDS

Bitnet = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = (
    "numpy",
    "rich",
    "tokenizers",
    "torch",
    "prompt_toolkit",
    "jinja2",
    "bitnet.engine",
    "bitnet._core",
    "huggingface_hub",
)


def three_lines(text: str) -> bool:
    lines = text.splitlines()
    return [line.split(":")[0] for line in lines] == ["error", "  why", "  fix"]


def test_without_arguments_the_help_is_shown(bitnet: Bitnet) -> None:
    result = bitnet()
    assert result.returncode == 0 and all(name in result.stdout for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bitnet.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr == "[]\n" and "Commands" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(bitnet: Bitnet, name: str) -> None:
    result = bitnet(name, "--help")
    assert result.returncode == 0 and f"bitnet {name}" in result.stdout and COMMANDS[name][1] in result.stdout


def test_version(bitnet: Bitnet) -> None:
    import bitnet as package

    assert bitnet("--version").stdout == f"bitnet {package.__version__}\n"


@pytest.mark.parametrize("line", ["rum", "run --nonsense", "run x --top-p 2", "run x --seed y", "inspect"])
def test_wrong_usage_ends_with_2_and_says_why(bitnet: Bitnet, line: str) -> None:
    result = bitnet(*line.split())
    assert result.returncode == 2 and result.stdout == "" and three_lines(result.stderr)


def test_a_misspelled_command_is_guessed(bitnet: Bitnet) -> None:
    assert "'run'" in bitnet("rum").stderr


@pytest.mark.parametrize("content", [b"", b"nonsense", b"GGUF\x03\0\0\0"])
def test_a_bad_model_ends_with_3_and_says_why(bitnet: Bitnet, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    result = bitnet("run", "hello", "-m", path)
    assert result.returncode == 3 and three_lines(result.stderr) and "bad.gguf" in result.stderr


def test_a_missing_model_ends_with_3(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("run", "hello", "-m", tmp_path / "none.gguf")
    assert result.returncode == 3 and three_lines(result.stderr)


def test_an_error_cannot_paint_the_terminal(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("inspect", tmp_path / "\033[31mred\nline.gguf")
    assert "\033" not in result.stderr and three_lines(result.stderr)


def test_a_missing_file_ends_with_1(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("run", "--file", tmp_path / "none.txt")
    assert result.returncode == 1 and three_lines(result.stderr)


def test_debug_shows_the_traceback(bitnet: Bitnet) -> None:
    assert "Traceback" in bitnet("run", "x", "--top-k", "-1", "--debug").stderr
    assert "Traceback" in bitnet("run", "x", "--top-k", "-1", BITNET_DEBUG="1").stderr


def test_a_flag_comes_from_its_environment_variable(bitnet: Bitnet) -> None:
    result = bitnet("run", "x", BITNET_TOP_K="-7")
    assert result.returncode == 2 and "top-k" in result.stderr


def test_a_variable_holds_a_value_of_a_repeated_option_on_each_line(bitnet: Bitnet) -> None:
    text = bitnet("chat", stdin="/show\n", BITNET_STOP="User: a\n\nBot: b\n").stderr
    assert '["User: a", "Bot: b"]' in text
