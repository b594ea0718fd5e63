"""`bitnet run`: where prompts come from, what is printed where, and how it ends early."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bitnet.api import BitNet, builtin_model
from bitnet.cli import run
from bitnet.cli.generation import stream
from bitnet.cli.main import main
from bitnet.cli.options import NOT_HERE
from bitnet.engine import SamplingParams, Sequence

BACKEND = "cpu" if find_spec("bitnet._core") else "reference"
Bitnet = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[bytes]"]


def answer(bitnet: Bitnet, *arguments: object, **options: Any) -> dict[str, Any]:
    result = bitnet("run", *arguments, "--json", "--seed", "1", "-n", "12", **options)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_the_text_goes_to_stdout_and_the_statistics_to_stderr(bitnet: Bitnet) -> None:
    result = bitnet("run", "the", "-n", "12", "--seed", "1")
    assert result.returncode == 0 and len(result.stdout) > 1 and result.stdout.endswith("\n")
    for part in ("prompt 2 @", "generated 12 @", "TTFT", "context 14/4096", "peak RSS", " thread"):
        assert part in result.stderr


def test_a_screened_head_says_the_same(bitnet: Bitnet) -> None:
    for sampling in (["--temperature", "0"], ["--top-k", "5"]):
        full, screened = (answer(bitnet, "the", "--head", head, *sampling) for head in ("full", "screen"))
        assert full["text"] == screened["text"]


def test_guesses_change_nothing_but_the_statistics(bitnet: Bitnet, tiny_gguf: Path) -> None:
    sampling = ["--temperature", "0", "--draft-tokens", "3"]
    plain, lookup, model = (
        answer(bitnet, "the", *sampling, *draft) for draft in ([], ["--draft", "lookup"], ["--draft", tiny_gguf])
    )
    assert plain["text"] == lookup["text"] == model["text"]
    assert plain["drafted"] == 0 and plain["acceptance"] is None and plain["tokens_per_step"] == 1
    # The model guesses its own tokens: the first came with the prompt, the other eleven in steps of four.
    assert (model["drafted"], model["accepted"], model["tokens_per_step"]) == (8, 8, 3)
    line = bitnet("run", "the", "-n", "12", *sampling, "--draft", tiny_gguf).stderr
    assert "8 of 8 guesses right (100%), 3.00 tokens a step" in line


def test_a_model_that_cannot_guess_is_refused(bitnet: Bitnet, tmp_path: Path) -> None:
    assert bitnet("run", "the", "--draft", tmp_path / "none.gguf").returncode == 3
    builtin = bitnet("run", "the", "--draft", builtin_model())
    assert builtin.returncode == 2 and "another vocabulary" in builtin.stderr


def test_a_context_that_slides_goes_on_and_says_so(bitnet: Bitnet) -> None:
    slide = ["--ctx-size", "24", "--ctx-overflow", "slide", "--ctx-keep", "2", "--ignore-eos"]
    found = answer(bitnet, "x" * 40, *slide)
    assert (found["generated_tokens"], found["finish_reason"]) == (12, "length")
    assert found["slid"] == found["prompt_tokens"] + 12 - found["context_used"] > 0
    told = bitnet("run", "x" * 40, *slide, "-n", "12", "--seed", "1").stderr
    assert f"{found['slid']} tokens after the first 2 were let go" in told


def test_a_context_beyond_the_models_own_is_said_to_be_smaller(bitnet: Bitnet) -> None:
    assert "context is 4096 tokens" in bitnet("run", "the", "-n", "2", "-c", "100000").stderr
    assert "context is" not in bitnet("run", "the", "-n", "2").stderr
    refused = bitnet("run", "x" * 5000, "-c", "100000")
    assert refused.returncode == 2 and "holds 4096" in refused.stderr and "raise" not in refused.stderr


def test_no_stats_prints_none(bitnet: Bitnet) -> None:
    assert bitnet("run", "the", "-n", "2", "--no-stats").stderr == ""


def test_json_has_the_text_and_the_numbers(bitnet: Bitnet) -> None:
    found = answer(bitnet, "the")
    assert found["prompt"] == "the" and found["text"] and found["generated_tokens"] == 12
    assert found["prompt_tokens"] == 2 and found["finish_reason"] == "length" and found["context_used"] == 14
    assert found["time_to_first_token"] > 0 and found["generated_per_second"] > 0 and found["peak_rss"] > 0


def test_the_same_seed_writes_the_same_text(bitnet: Bitnet) -> None:
    assert answer(bitnet, "the")["text"] == answer(bitnet, "the")["text"]


def test_the_prompt_comes_from_a_pipe_a_dash_a_file_or_an_argument(bitnet: Bitnet, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("the thing", encoding="utf-8")
    given = [answer(bitnet, "the thing"), answer(bitnet, stdin="the thing"), answer(bitnet, "-", stdin="the thing")]
    given += [answer(bitnet, "--file", file), answer(bitnet, "-f", "-", stdin="the thing")]
    assert {found["prompt"] for found in given} == {"the thing"} and len({found["text"] for found in given}) == 1


def test_an_argument_does_not_wait_for_stdin(start: Start) -> None:
    process = start("run", "the", "-n", "2")
    assert process.wait(60) == 0


def test_two_prompts_or_none_are_refused(bitnet: Bitnet, tmp_path: Path) -> None:
    assert bitnet("run", "a", "--file", tmp_path / "b").returncode == 2
    assert bitnet("run").returncode == 2


def test_bytes_that_are_no_text_do_not_end_it(start: Start) -> None:
    process = start("run", "-n", "2")
    out, _ = process.communicate(b"\xff\xfe the", timeout=60)
    assert process.returncode == 0 and out


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(bitnet: Bitnet) -> None:
    result = bitnet("run", "x" * 100, "--ctx-size", "32")
    assert result.returncode == 2 and "101" in result.stderr and "32" in result.stderr


def test_every_field_of_sampling_params_is_an_option(bitnet: Bitnet) -> None:
    text = bitnet("run", "--help").stdout
    missing = {n for n in SamplingParams.__dataclass_fields__ if f"--{n.replace('_', '-')}" not in text}
    assert missing == set(NOT_HERE)
    assert all(alias in text for alias in ("--temp", "--repeat-penalty", "-n,"))


def test_sampling_options_arrive(bitnet: Bitnet) -> None:
    greedy = [answer(bitnet, "the", "--temp", "0", "--top-k", k)["text"] for k in (0, 3)]
    assert greedy[0] == greedy[1]
    stop = greedy[0][2]
    assert answer(bitnet, "the", "--temp", "0", "--stop", "never here", "--stop", stop)["finish_reason"] == "stop"


def test_the_chat_template_is_used_where_asked(bitnet: Bitnet) -> None:
    assert answer(bitnet, "the", "--chat")["prompt_tokens"] > answer(bitnet, "the")["prompt_tokens"]


def test_ctrl_c_ends_with_130_and_keeps_what_was_written(start: Start) -> None:
    process = start("run", "the", "--ignore-eos")
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in err and b"generated" in err


def test_ctrl_c_leaves_json_with_the_text_so_far(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(model: BitNet, sequence: Sequence, write: Callable[[str], None]) -> None:
        def once(piece: str) -> None:
            write(piece)
            raise KeyboardInterrupt

        stream(model, sequence, once)

    monkeypatch.setattr(run, "stream", interrupted)
    with pytest.raises(SystemExit) as left:
        main(["run", "the", "--json", "--model", str(tiny_gguf), "--backend", BACKEND])
    found = json.loads(capsys.readouterr().out)
    assert left.value.code == 130 and found["text"] and found["finish_reason"] == "abort"


def test_a_closed_pipe_ends_quietly(start: Start) -> None:
    process = start("run", "the", "--ignore-eos", "--no-stats")
    assert process.stdout is not None and process.stderr is not None and process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == b""
