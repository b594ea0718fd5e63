"""`bitnet serve` as a process: its options, its signals and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving

BITNET = (sys.executable, "-m", "bitnet", "serve")
LONG = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 20_000, "ignore_eos": True}
CHAT = "/v1/chat/completions"


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BITNET_")}
    return {**inherited, "BITNET_BACKEND": serving.BACKEND, "COLUMNS": "100", **variables}


@contextlib.contextmanager
def started(*arguments: object, **variables: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The process, listening, and a client of it; its log is in `process.log`."""
    process: Any = subprocess.Popen(
        [*BITNET, "--port", "0", *map(str, arguments)],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    process.log = []
    address: Any = None
    for line in process.stderr:
        process.log.append(line)
        address = re.search(r"http://\S+", line)
        if address:
            break
    assert address, process.log
    reader = threading.Thread(target=lambda: process.log.extend(process.stderr))
    reader.start()
    try:
        with httpx.Client(base_url=address[0], timeout=serving.PATIENCE) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        reader.join()


def refused(*arguments: object, **variables: str) -> tuple[int, str]:
    """Of a server that does not start."""
    command = [*BITNET, *map(str, arguments)]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def test_it_serves_the_built_in_model_without_options() -> None:
    with started() as (process, client):
        assert str(client.base_url).startswith("http://127.0.0.1:")
        found = client.post(CHAT, json={"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 8})
        assert found.json()["model"] == "stories" and found.json()["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(serving.PATIENCE) == 0
    log = "".join(process.log)  # type: ignore[attr-defined]
    assert "Traceback" not in log and "story" not in log
    assert re.search(rf"127\.0\.0\.1 POST {CHAT} 200 [\d.]+ ms req-", log)


def test_models_have_names(tiny_gguf: Path) -> None:
    with started("-m", f"a={tiny_gguf}", "--model", tiny_gguf) as (_, client):
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["a", "tiny"]


def test_keys_come_from_a_file_and_the_environment(tiny_gguf: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    with started("-m", tiny_gguf, "--api-key-file", keys, BITNET_API_KEY="three") as (process, client):
        for key, status in (("one", 200), ("two", 200), ("three", 200), ("four", 401)):
            assert client.get("/v1/models", headers={"x-api-key": key}).status_code == status
    assert not any(key in line for line in process.log for key in ("three", "four"))  # type: ignore[attr-defined]


def test_a_public_address_without_a_key_is_refused() -> None:
    code, said = refused("--host", "0.0.0.0")
    assert code == 2 and "Anyone who can reach 0.0.0.0" in said and "--api-key" in said


def test_a_port_in_use_is_said(tiny_gguf: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refused("-m", tiny_gguf, "--port", taken.getsockname()[1])
    assert code == 1 and "in use" in said and "--port 0" in said and "Traceback" not in said


@pytest.mark.parametrize("arguments, code, words", [
    (("-m", "/no/such.gguf"), 3, "no/such"),
    (("--port", "70000"), 2, "65535"),
    (("--host", "no.such.host.invalid", "--insecure"), 2, "There is no address"),
    (("--api-key-file", "/no/such"), 1, "/no/such"),
    (("-m", "a=x.gguf", "-m", "a=y.gguf"), 3, "x.gguf"),
    (("--queue-size", "-1"), 2, "queue-size"),
])  # fmt: skip
def test_mistakes_are_explained(arguments: tuple[str, ...], code: int, words: str) -> None:
    found, said = refused(*arguments)
    assert found == code and words in said and "Traceback" not in said


def test_two_models_of_one_name_are_refused(tiny_gguf: Path) -> None:
    code, said = refused("-m", tiny_gguf, "-m", tiny_gguf)
    assert code == 2 and "Two models" in said


def test_a_damaged_model_is_found_before_anyone_is_let_in(tiny_gguf: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf.read_bytes()[:5000])
    code, said = refused("-m", tiny_gguf, "-m", damaged)
    assert code == 3 and "damaged.gguf" in said


def test_a_default_model_that_does_not_load_ends_the_server(tiny_gguf: Path) -> None:
    code, said = refused("-m", tiny_gguf, "--backend", "abacus", "--port", 0)
    assert code == 2 and "abacus" in said and "Traceback" not in said


def test_without_the_libraries_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    code, said = refused(PYTHONPATH=str(tmp_path))
    assert code == 2 and "pip install 'bitnet[serve]'" in said and "Traceback" not in said


def stream_of(client: httpx.Client, body: dict[str, Any], began: threading.Event) -> list[str]:
    """The data of an answer's events; says when it has begun."""
    found = []
    with client.stream("POST", CHAT, json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                found.append(line[6:])
                if len(found) == 3:
                    began.set()
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_and_nothing_new_is_begun(tiny_gguf: Path, number: int) -> None:
    with started("-m", tiny_gguf, "--drain-timeout", 60) as (process, client), ThreadPoolExecutor(2) as pool:
        began = threading.Event()
        serving.wait_until(lambda: client.get("/ready").status_code == 200)
        body = {**LONG, "max_tokens": 400}
        whole = pool.submit(client.post, CHAT, json=body)
        serving.wait_until(lambda: client.get("/slots").json())
        running = pool.submit(stream_of, client, {**body, "stream": True}, began)
        assert began.wait(serving.PATIENCE)
        process.send_signal(number)
        with contextlib.suppress(httpx.TransportError):  # it may have ended by now
            serving.wait_until(lambda: client.get("/ready").status_code == 503)
            refusal = client.post(CHAT, json=body)
            assert refusal.status_code == 503 and refusal.json()["error"]["type"] == "unavailable_error"
            assert int(refusal.headers["retry-after"]) > 0
        assert running.result()[-1] == "[DONE]"
        assert whole.result().json()["usage"]["completion_tokens"] == 400
        assert process.wait(serving.PATIENCE) == 0


def test_what_does_not_finish_in_time_ends_with_an_error(tiny_gguf: Path) -> None:
    with started("-m", tiny_gguf, "--ctx-size", 0, "--drain-timeout", 0.2) as (process, client):
        with ThreadPoolExecutor(2) as pool:
            began = threading.Event()
            whole = pool.submit(client.post, CHAT, json=LONG)
            running = pool.submit(stream_of, client, {**LONG, "stream": True}, began)
            assert began.wait(serving.PATIENCE)
            process.send_signal(signal.SIGTERM)
            *_, last = running.result()
            assert json.loads(last)["error"]["code"] == "shutting_down"
            assert whole.result().status_code == 503
        assert process.wait(serving.PATIENCE) == 0


def test_a_second_signal_ends_it_now(tiny_gguf: Path) -> None:
    with (
        started("-m", tiny_gguf, "--ctx-size", 0, "--drain-timeout", 3600) as (process, client),
        ThreadPoolExecutor(1) as pool,
    ):
        began = threading.Event()
        running = pool.submit(stream_of, client, {**LONG, "stream": True}, began)
        assert began.wait(serving.PATIENCE)
        process.send_signal(signal.SIGTERM)
        serving.wait_until(lambda: client.get("/ready").status_code == 503)
        process.send_signal(signal.SIGTERM)
        process.wait(serving.PATIENCE)
        with contextlib.suppress(httpx.TransportError):
            assert "[DONE]" not in running.result()
    assert "Traceback" not in "".join(process.log)  # type: ignore[attr-defined]
