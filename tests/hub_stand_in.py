"""A hub on loopback: the few endpoints of huggingface.co that fetching a model needs, and the ways in which they fail.

Sources: https://huggingface.co/docs/hub/api, and what huggingface_hub reads of the answers.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".gguf", ".safetensors", ".bin")  # kept in LFS


def git_hash(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass
class Repository:
    """status, code: answer every request for it so, with this X-Error-Code. served: what is sent instead of a file."""

    files: Mapping[str, bytes]
    status: int = 200
    code: str = ""
    served: dict[str, bytes] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def etag(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_hash(data)

    def listing(self, repo: str) -> dict[str, Any]:
        def sibling(name: str, data: bytes) -> dict[str, Any]:
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": self.etag(name), "size": len(data), "pointerSize": 134}
            return entry

        files = [sibling(*item) for item in self.files.items()]
        return {"id": repo, "modelId": repo, "sha": self.commit, "siblings": files, "tags": [], "private": False}


class StandIn:
    """stop_after: bytes of a large file after which a connection ends, once; `stall` makes it wait there instead.

    requests: (method, path, Range) of all that came.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.stop_after: int | None = None
        self.stall: threading.Event | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repo: str, files: Mapping[str, bytes], **how: Any) -> Repository:
        self.repositories[repo] = Repository(files, **how)
        return self.repositories[repo]

    def fetched(self, name: str) -> list[str]:
        """The Range of every request for the contents of a file."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                path = self.path.split("?")[0]
                hub.requests.append((self.command, path, self.headers.get("Range", "")))
                match = re.fullmatch(r"(/api/models)?/([^/]+/[^/]+)(?:/(?:revision|resolve)/[^/]+(?:/(.+))?)?", path)
                repository = hub.repositories.get(match[2]) if match else None
                if match is None or repository is None:
                    self.refuse(404, "RepoNotFound")
                elif repository.status != 200:
                    self.refuse(repository.status, repository.code)
                elif match[1]:
                    self.send(200, json.dumps(repository.listing(match[2])).encode(), {})
                elif match[3] not in repository.files:
                    self.refuse(404, "EntryNotFound")
                else:
                    self.send_file(repository, match[3])

            def send_file(self, repository: Repository, name: str) -> None:
                data = repository.served.get(name, repository.files[name])
                headers = {"ETag": f'"{repository.etag(name)}"', "X-Repo-Commit": repository.commit}
                span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(span[1]) if span else 0
                if span:
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send(206 if span else 200, data[start:], headers, name.endswith(LARGE))

            def send(self, status: int, data: bytes, headers: Mapping[str, str], large: bool = False) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                stop, stall = hub.stop_after, hub.stall
                if not large or stop is None:
                    self.wfile.write(data)
                    return
                hub.stop_after = None
                self.wfile.write(data[:stop])
                self.wfile.flush()
                if stall is None:
                    hub.repositories = {name: Repository({}, 503) for name in hub.repositories}
                    self.close_connection = True
                    return
                stall.wait(60)
                self.wfile.write(data[stop:])

            def refuse(self, status: int, code: str) -> None:
                self.send(status, b"", {"X-Error-Code": code, "Retry-After": "7"} if code else {"Retry-After": "7"})

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def stand_in() -> Iterator[StandIn]:
    hub = StandIn()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.stall is not None:
            hub.stall.set()
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
