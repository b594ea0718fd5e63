"""A server under everything at once, for as long as wanted: right answers, and memory and open files that stay flat.

    python tools/soak.py --seconds 1800 --connections 1000

First so many requests at once, each of which must have the right answer; then a mix of those who ask properly, leave
early, read slowly, send nonsense, connect and say nothing, and ask for a model that is being unloaded. Prints what it
saw as JSON; ends with 1 where an answer was wrong or lost, or where the process grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import urlsplit

import httpx
import psutil

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPTS = [f"Tell me a story about {what}." for what in ("a dog", "the sea", "two friends", "a lost hat", "the moon")]
BAD = [
    b"", b"null", b"{", b"[" * 100_000, b'{"messages":[]}', b'{"messages":[{"role":"user","content":"a"}],"n":99}',
    b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}', b'{"prompt":1e999}', b"\xff\xfe", b"1" * 100_000,
    b'{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}', b'{"model":"../../etc/passwd","messages":[]}',
]  # fmt: skip
SETTLED = 0.25  # share of the run after which the process has what it needs
GROWTH = 24 << 20, 12  # bytes and open files by which the last quarter may lie above the one after settling


class Soak:
    def __init__(self, url: str, process: psutil.Process, arguments: argparse.Namespace) -> None:
        self.url, self.process, self.arguments = url, process, arguments
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: dict[str, str] = {}
        self.samples: list[tuple[float, int, int, int]] = []
        self.random = random.Random(arguments.seed)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
        self.http = httpx.AsyncClient(base_url=url, timeout=600, limits=limits)

    async def run(self) -> dict[str, object]:
        for i in range(len(PROMPTS)):
            for model in ("a", "b"):
                body = self.proper(i, model)
                self.expected[body["messages"][0]["content"]] = (await self.http.post(CHAT, json=body)).json()[
                    "choices"
                ][0]["message"]["content"]
        burst = await self.burst(self.arguments.connections)
        self.until = time.monotonic() + self.arguments.seconds
        kinds = {self.ask: 6, self.leave: 4, self.read_slowly: 4, self.nonsense: 2, self.say_nothing: 4, self.reload: 1}
        await asyncio.gather(self.watch(), *(self.repeat(kind) for kind, count in kinds.items() for _ in range(count)))
        await self.quiet()
        return {**burst, **self.verdict()}

    def proper(self, i: int, model: str = "a", stream: bool = False) -> dict[str, object]:
        """The same tokens whatever else runs, so long as the seed is the same."""
        messages = [{"role": "user", "content": PROMPTS[i % len(PROMPTS)]}]
        return {"model": model, "messages": messages, "max_tokens": 24, "seed": i % len(PROMPTS), "stream": stream}

    async def burst(self, count: int) -> dict[str, object]:
        """Everyone at once; whoever is told to come again does so."""
        began, rss = time.monotonic(), self.process.memory_info().rss
        await asyncio.gather(*(self.answered(i, "a", False) for i in range(count)))
        return {
            "burst": count,
            "burst_seconds": round(time.monotonic() - began, 1),
            "burst_right": self.seen.pop("right", 0),
            "burst_rss_growth_mib": round((self.process.memory_info().rss - rss) / 2**20, 1),
        }

    async def repeat(self, kind) -> None:
        while time.monotonic() < self.until:
            try:
                await kind()
            except Exception as error:
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                await asyncio.sleep(1)

    async def answered(self, i: int, model: str, stream: bool) -> None:
        body = self.proper(i, model, stream)
        while True:
            try:
                text, status = await (self.streamed(body) if stream else self.whole(body))
            except (httpx.ReadError, httpx.RemoteProtocolError):
                # A connection that was kept may be closed while the next request is on its way; all clients try again.
                self.seen["tried again"] += 1
                continue
            if status != 429:
                break
            self.seen["told to come again"] += 1
            await asyncio.sleep(1 + self.random.random())
        if text == self.expected[body["messages"][0]["content"]]:
            self.seen["right"] += 1
        else:
            self.wrong.append(f"{status}: {text!r:.300}")

    async def whole(self, body: dict[str, object]) -> tuple[str, int]:
        response = await self.http.post(CHAT, json=body)
        found = response.json()
        text = found["choices"][0]["message"]["content"] if response.status_code == 200 else str(found)
        return text, response.status_code

    async def streamed(self, body: dict[str, object]) -> tuple[str, int]:
        parts: list[str] = []
        async with self.http.stream("POST", CHAT, json=body) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "".join(parts), response.status_code
                if line.startswith("data: {"):
                    data = json.loads(line[6:])
                    parts += [choice["delta"].get("content") or "" for choice in data.get("choices", ())]
        return "".join(parts) + " (broken off)", response.status_code

    async def ask(self) -> None:
        await self.answered(self.random.randrange(100), "a", self.random.random() < 0.5)

    async def reload(self) -> None:
        await self.answered(self.random.randrange(100), "b", False)
        self.seen["asked the other model"] += 1
        await asyncio.sleep(self.random.choice([0.1, 4, 6]))

    @contextmanager
    def aborted(self, writer: asyncio.StreamWriter):
        """Closed at the end, half of the time with a reset."""
        try:
            yield
        finally:
            if self.random.random() < 0.5:
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort() if self.random.random() < 0.5 else writer.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        at = urlsplit(self.url)
        return await asyncio.open_connection(at.hostname, at.port)

    def request(self, body: dict[str, object]) -> bytes:
        data = json.dumps(body).encode()
        return b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)) + data

    async def leave(self) -> None:
        reader, writer = await self.connect()
        with self.aborted(writer):
            body = {**self.proper(self.random.randrange(100), stream=self.random.random() < 0.5), "max_tokens": 2000}
            data = self.request(body)
            writer.write(data[: self.random.choice([len(data), len(data), 40, len(data) - 9])])
            with suppress(TimeoutError, asyncio.TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(200), self.random.random())
        self.seen["left"] += 1

    async def read_slowly(self) -> None:
        reader, writer = await self.connect()
        with self.aborted(writer):
            writer.write(self.request({**self.proper(0, stream=True), "max_tokens": 200}))
            for _ in range(self.random.randrange(100)):
                await reader.read(1)
                await asyncio.sleep(0.05)
        self.seen["read slowly"] += 1

    async def nonsense(self) -> None:
        path = self.random.choice([CHAT, COMPLETIONS, "/v1/embeddings", "/tokenize", "/nowhere"])
        response = await self.http.post(path, content=self.random.choice(BAD))
        if not 400 <= response.status_code < 500 or "error" not in response.json():
            self.wrong.append(f"nonsense got {response.status_code} {response.text:.200}")
        self.seen["nonsense"] += 1
        await asyncio.sleep(0.02)

    async def say_nothing(self) -> None:
        """A connection that is half open, and for longer than the server waits."""
        reader, writer = await self.connect()
        with self.aborted(writer):
            writer.write(self.random.choice([b"", b"POST ", b"GET / HTTP/1.1\r\nHost: a", b"\x16\x03\x01"]))
            with suppress(TimeoutError, asyncio.TimeoutError, ConnectionError):
                patience = min(self.random.choice([1, 5, 30]), max(0.1, self.until - time.monotonic()))
                await asyncio.wait_for(reader.read(), patience)
        self.seen["said nothing"] += 1

    async def watch(self) -> None:
        while time.monotonic() < self.until:
            (await self.http.get("/metrics")).raise_for_status()
            self.sample()
            await asyncio.sleep(min(5.0, self.arguments.seconds / 40))

    def sample(self) -> None:
        used = self.process.memory_info().rss
        self.samples.append((time.monotonic(), used, self.process.num_fds(), self.process.num_threads()))

    async def quiet(self) -> None:
        """Once all have left, nothing of theirs may be left."""
        for _ in range(600):
            slots, text = (await self.http.get("/slots")).json(), (await self.http.get("/metrics")).text
            used = sum(float(x) for x in re.findall(r"^bitnet_kv_cache_usage_ratio\{.*\} (\S+)", text, re.M))
            if not slots and used == 0:
                return
            await asyncio.sleep(0.1)
        self.wrong.append(f"never quiet: {slots}, {used}")

    def verdict(self) -> dict[str, object]:
        kept = self.samples[int(len(self.samples) * SETTLED) :]
        third = max(1, len(kept) // 3)
        first, last = (
            [statistics.median(values) for values in list(zip(*part))[1:]] for part in (kept[:third], kept[-third:])
        )
        if self.seen["tried again"] > self.seen["right"] // 100:
            self.wrong.append("connections break off")
        growth = [after - before for before, after in zip(first, last)]
        if growth[0] > GROWTH[0] or growth[1] > GROWTH[1]:
            self.wrong.append(f"grew by {growth[0] / 2**20:.1f} MiB and {growth[1]:g} open files")
        return {
            "seconds": self.arguments.seconds,
            "seen": dict(self.seen),
            "rss_mib": [round(each / 2**20, 1) for each in (first[0], last[0], max(s[1] for s in self.samples))],
            "open_files": [first[1], last[1], max(s[2] for s in self.samples)],
            "threads": [first[2], last[2], max(s[3] for s in self.samples)],
            "wrong": len(self.wrong),
            "examples": self.wrong[:10],
        }


@contextmanager
def server(command: list[str]):
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            found = re.search(r"http://\S+", line)
            if found:
                break
        else:
            raise SystemExit("The server did not start.")
        log = open_log(process)
        yield found[0], psutil.Process(process.pid)
        process.terminate()
        if process.wait(90) != 0 or any("Traceback" in line for line in log):
            raise SystemExit(f"The server did not end well: {process.returncode}")
    finally:
        process.kill()


def open_log(process) -> list[str]:
    """The lines that are no access log, read for as long as there are any."""
    import threading

    kept: list[str] = []
    threading.Thread(
        target=lambda: kept.extend(line for line in process.stderr if " ms req-" not in line), daemon=True
    ).start()
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--connections", type=int, default=1000, help="requests at once in the beginning")
    parser.add_argument("--model", default="", help="absent: the built-in one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("more", nargs="*", help="further arguments of `bitnet serve`")
    arguments = parser.parse_args()
    from bitnet.api import builtin_model

    model = arguments.model or builtin_model()
    command = [sys.executable, "-m", "bitnet", "serve", "--port", "0", "-m", f"a={model}", "-m", f"b={model}"]
    command += ["--idle-unload", "3", "--stall-timeout", "10", "--queue-size", "4096", *arguments.more]
    with server(command) as (url, process):
        found = asyncio.run(Soak(url, process, arguments).run())
    print(json.dumps(found, indent=2))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
