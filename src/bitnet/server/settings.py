"""What an operator can set. The command line reads these fields for its options."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field
from typing import Any

from bitnet.errors import ParameterError


def setting(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class Settings:
    """How to listen, whom to let in, and how much to take on. Times are in seconds."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8080, "port to listen on; 0 takes a free one", 0, 65535)
    api_key: tuple[str, ...] = setting((), "key that clients must send, as `Authorization: Bearer KEY`")
    insecure: bool = setting(False, "listen on a public address without a key")
    allowed_host: tuple[str, ...] = setting(
        (), 'name this server is reached by, or "*"; addresses and localhost always work'
    )
    cors_origin: tuple[str, ...] = setting((), 'origin of web pages that may call, or "*"; localhost always may')
    queue_size: int = setting(1024, "requests that wait for their turn at most; the rest gets 429", 0)
    queue_timeout: float = setting(120.0, "longest wait for a turn; then 429", 0.01)
    request_timeout: float = setting(0.0, "longest time for an answer, which then ends as it is; 0: none", 0)
    max_body: int = setting(8 << 20, "bytes of a request's body at most", 1024)
    stall_timeout: float = setting(60.0, "longest wait for a client that neither sends nor reads", 0.1)
    drain_timeout: float = setting(30.0, "time for running answers to finish once the server is told to stop", 0)
    idle_unload: float = setting(0.0, "unload a model that was not used for this long; 0: never", 0)
    ping_interval: float = setting(15.0, "send a comment into a stream that is silent for this long", 0.01)
    metrics_aliases: bool = setting(False, "also give metrics under the names of vLLM and llama.cpp")

    def __post_init__(self) -> None:
        if any(not key.strip() or not key.isascii() or not key.isprintable() for key in self.api_key):
            raise ParameterError("An API key is empty, or has characters that no header can carry.")
        if not self.is_local and not self.api_key and not self.insecure:
            raise ParameterError(
                f"Anyone who can reach {self.host} could use this server.",
                "Set --api-key (or BITNET_API_KEY), or say --insecure if that is meant.",
            )

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
