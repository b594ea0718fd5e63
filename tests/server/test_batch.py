"""`bitnet batch`: every request has one answer, the one that the server would give, whatever happens on the way."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import serving

from bitnet.errors import ParameterError
from bitnet.server.app import create_app
from bitnet.server.batch import Batch, Results, read_lines
from bitnet.server.registry import Registry
from bitnet.server.settings import Settings

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def request(custom_id: Any, url: str = COMPLETIONS, method: str = "POST", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": method, "url": url, "body": body}


def completions(count: int, tokens: int = 4) -> list[dict[str, Any]]:
    return [request(f"id {i}", prompt=f"number {i}", max_tokens=tokens, temperature=0) for i in range(count)]


def written(path: Path, lines: Iterable[Any]) -> Path:
    text = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines)
    path.write_bytes(text.encode(errors="surrogateescape"))
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path: Path) -> dict[str, str]:
    return {each["custom_id"]: each["response"]["body"]["choices"][0]["text"] for each in records(path)}


@pytest.fixture
def batch(tiny_gguf: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(source: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(tiny_gguf, source, tmp_path / "out.jsonl", *arguments),
            capture_output=True, text=True, timeout=300, **options,
        )  # fmt: skip

    return run


def command(model: Path, *arguments: object) -> list[str]:
    own = ["-m", model, "--backend", serving.BACKEND, "--threads", 1]
    return [sys.executable, "-m", "bitnet", "batch", *map(str, (*arguments, *own))]


def test_answers_are_the_servers(batch: Callable[..., Any], client: serving.Client, tmp_path: Path) -> None:
    asked = [
        request("a chat", CHAT, messages=[{"role": "user", "content": "the end"}], max_tokens=6, seed=3),
        request("a text", prompt="once", max_tokens=6, seed=4, logprobs=2, n=2),
        request("a vector", EMBEDDINGS, input=["one", "two"]),
        request("a mistake", CHAT, messages=[], max_tokens=6),
        request("too long", prompt="a" * 5000),
        request("no such model", prompt="a", model="other"),
    ]
    done = batch(written(tmp_path / "in.jsonl", asked), "--ctx-size", 256)
    assert done.returncode == 1 and "3 answered, 3 failed" in done.stderr
    found = {each["custom_id"]: each for each in records(tmp_path / "out.jsonl")}
    assert len(found) == 6 and len({each["id"] for each in found.values()}) == 6
    for each in asked:
        told = client.post(each["url"], json=each["body"])
        response = found[each["custom_id"]]["response"]
        assert found[each["custom_id"]]["error"] is None and response["request_id"].startswith("req-")
        assert response["status_code"] == told.status_code
        changing = ("id", "created", "timings")
        own, same = ({k: v for k, v in body.items() if k not in changing} for body in (response["body"], told.json()))
        if "usage" in own and "prompt_tokens_details" in own["usage"]:
            del own["usage"]["prompt_tokens_details"], same["usage"]["prompt_tokens_details"]
        assert own == same


@pytest.mark.parametrize("line, code", [
    ("nonsense", "invalid_json_line"),
    ("[]", "invalid_json_line"),
    ('{"custom_id": "a", "n": NaN}', "invalid_json_line"),
    ("[" * 1000, "invalid_json_line"),
    ("\udcff\udcfe", "invalid_json_line"),
    ("x" * 5000, "line_too_long"),
    ({"method": "POST"}, "invalid_custom_id"),
    (request(7, prompt="a"), "invalid_custom_id"),
    (request("", prompt="a"), "invalid_custom_id"),
    (request("i" * 600, prompt="a"), "invalid_custom_id"),
    (request("a", prompt="a", method="GET"), "invalid_method"),
    (request("a", "/v1/models"), "invalid_url"),
    (request("a", "../../etc/passwd"), "invalid_url"),
    (request("a", prompt="a", stream=True), "invalid_body"),
    ({**request("a"), "body": "text"}, "invalid_body"),
])  # fmt: skip
def test_a_bad_line_is_told_and_the_others_are_answered(line: Any, code: str, tmp_path: Path) -> None:
    good = completions(2)
    tally, out = answered(written(tmp_path / "in", [good[0], line, "", good[1]]), tmp_path / "out", max_body=4096)
    assert (tally.answered, tally.failed) == (2, 1)
    (bad,) = [each for each in out if each["error"]]
    assert bad["error"]["code"] == code and bad["error"]["line"] == 2 and bad["response"] is None
    again, more = answered(tmp_path / "in", tmp_path / "out", max_body=4096)
    assert more == out and (again.answered, again.failed, again.skipped) == (2, 1, 3)


def answered(source: Path | BinaryIO, out: Path, at_once: int = 4, **settings: Any) -> tuple[Any, list[Any]]:
    """In this process, by a model that says "A"."""
    chosen = Settings(queue_size=1000, **settings)
    app = create_app(Registry({"stand": serving.stand(serving.Paced())}, chosen), chosen)
    with Results(out) as results:
        reading = source.open("rb") if isinstance(source, Path) else source
        with reading:
            tally = asyncio.run(Batch(app, results, at_once, lambda tally: None).run(reading))
    return tally, records(out)


def test_of_lines_with_one_id_the_first_is_answered(tmp_path: Path) -> None:
    source = written(tmp_path / "in", [request("x", prompt="", max_tokens=n) for n in (1, 2, 3)])
    tally, out = answered(source, tmp_path / "out")
    assert (tally.answered, tally.failed) == (1, 2)
    assert sorted(each["error"]["line"] for each in out if each["error"]) == [2, 3]
    (whole,) = [each for each in out if each["response"]]
    assert whole["custom_id"] == "x" and whole["response"]["body"]["usage"]["completion_tokens"] == 1
    only_errors = [each for each in out if each["error"]]
    written(tmp_path / "out", only_errors)  # as if it had been killed before the first was answered
    tally, out = answered(source, tmp_path / "out")
    assert (tally.answered, tally.failed, tally.skipped) == (1, 2, 2) and len(out) == 3


def test_no_more_is_read_than_is_under_way(tmp_path: Path) -> None:
    read = most = 0
    out = tmp_path / "out"

    class Counting(io.BytesIO):
        def readline(self, *size: Any) -> bytes:
            nonlocal read, most
            read += 1
            most = max(most, read - out.read_bytes().count(b"\n"))
            return super().readline(*size)

    lines = "".join(json.dumps(each) + "\n" for each in completions(60, tokens=2))
    tally, found = answered(Counting(lines.encode()), out, at_once=5)
    assert tally.answered == 60 == len({each["custom_id"] for each in found}) and most <= 5 + 1


def test_a_long_line_is_not_held_in_memory() -> None:
    lines = list(read_lines(io.BytesIO(b"a" * 1_000_000 + b"\nb\n" + b"c" * 10), 10))
    assert lines == [b"a" * 11, b"b\n", b"c" * 10]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_is_gone_on_with(
    batch: Callable[..., Any], tiny_gguf: Path, tmp_path: Path, kill: signal.Signals
) -> None:
    source, out = written(tmp_path / "in.jsonl", completions(60, tokens=30)), tmp_path / "out.jsonl"
    process = subprocess.Popen(
        command(tiny_gguf, source, out, "--parallel", 2),
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    serving.wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 5)
    process.send_signal(kill)
    _, said = process.communicate(timeout=serving.PATIENCE)
    assert b"Traceback" not in said and process.returncode == (130 if kill == signal.SIGINT else -9)
    first = out.read_bytes()
    assert 5 <= first.count(b"\n") < 60 and all(each["response"]["status_code"] == 200 for each in records(out))
    with out.open("ab") as torn:
        torn.write(b'{"id":"batch_req_1","custom_id":"id 59","resp')
    done = batch(source)
    assert done.returncode == 0 and f"{len(first.splitlines())} of them earlier" in done.stderr
    assert out.read_bytes().startswith(first) and len(records(out)) == 60 == len(texts(out))
    whole = tmp_path / "whole.jsonl"
    subprocess.run(command(tiny_gguf, source, whole), check=True, capture_output=True, timeout=300)
    assert texts(out) == texts(whole)


def test_a_full_disk_is_said_and_nothing_is_lost(batch: Callable[..., Any], tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.jsonl", completions(20)), tmp_path / "out.jsonl"

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    done = batch(source, preexec_fn=small_files, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 1 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert out.stat().st_size == 4000
    assert batch(source).returncode == 0 and len(records(out)) == 20 == len(texts(out))


def test_two_at_one_file_are_refused(batch: Callable[..., Any], tmp_path: Path) -> None:
    with Results(tmp_path / "out.jsonl"):
        done = batch(written(tmp_path / "in.jsonl", completions(1)))
    assert done.returncode == 1 and "Another process is writing" in done.stderr


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for content in ('{"name": 1}\n', "my notes\n", '{"custom_id": "a"}\n'):
        out.write_text(content)
        with pytest.raises(ParameterError, match="Line 1 .* no answer of a batch"):
            Results(out)
        assert out.read_text() == content


@pytest.mark.parametrize("arguments, code, words", [
    (("no-such.jsonl", "out"), 1, "no-such.jsonl"),
    (("in.jsonl", "in.jsonl"), 2, "where the requests are"),
    (("in.jsonl", "."), 2, "no file"),
    (("in.jsonl", "no/folder/out"), 1, "no/folder/out"),
    (("in.jsonl", "out", "-m", "no.gguf"), 3, "no.gguf"),
    (("in.jsonl", "out", "--backend", "abacus"), 2, "abacus"),
])  # fmt: skip
def test_mistakes_of_the_command_are_explained(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    written(tmp_path / "in.jsonl", completions(1))
    done = subprocess.run(
        [sys.executable, "-m", "bitnet", "batch", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
