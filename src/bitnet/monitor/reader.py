"""Asks a server for /metrics and reads what it answers."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from bitnet.errors import ScrapeError

LONGEST = 16 << 20  # bytes: whoever answers more is no server of ours

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """time: time.time() of the scrape. samples: name -> labels -> value, every series of the text."""

    time: float
    samples: Mapping[str, Mapping[Labels, float]]

    def each(self, name: str, model: str | None = None) -> Iterator[tuple[dict[str, str], float]]:
        """The series of a name with their labels; with `model`, only that model's."""
        for labels, value in self.samples.get(name, {}).items():
            named = dict(labels)
            if model is None or named.get("model", model) == model:
                yield named, value

    def total(self, name: str, model: str | None = None) -> float | None:
        """The sum over all series; None where there is none."""
        values = [value for _, value in self.each(name, model)]
        return sum(values) if values else None

    def by(self, name: str, label: str) -> dict[str, float]:
        return {labels[label]: value for labels, value in self.each(name) if label in labels}

    def label(self, name: str, label: str) -> str | None:
        return next((labels[label] for labels, _ in self.each(name) if label in labels), None)


def parse(text: str, now: float | None = None) -> Snapshot:
    """Raises ScrapeError where `text` is not the Prometheus text format."""
    samples: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    except (ValueError, IndexError, KeyError) as error:
        raise ScrapeError("The answer is not in Prometheus' text format.", "Is this a bitnet server?") from error
    return Snapshot(time.time() if now is None else now, samples)


def scrape(url: str, key: str = "", timeout: float = 5.0) -> Snapshot:
    """url: the server's, with or without /metrics. Raises ScrapeError, and nothing else, whatever happens."""
    address = metrics_url(url)
    headers = {"Accept": "text/plain", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return parse(answer.read(LONGEST).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        with error:
            raise refusal(address, error.code, bool(key)) from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: what was given is no URL
        reason = getattr(error, "reason", None) or error
        reason = getattr(reason, "strerror", None) or reason
        raise ScrapeError(f"{address} does not answer: {reason}.", "Is the server running there?") from error


def metrics_url(url: str) -> str:
    url = url if "://" in url else f"http://{url}"
    if not url.startswith(("http://", "https://")):
        raise ScrapeError(f"{url} is not an address of a server.", "It looks like http://127.0.0.1:8080")
    return f"{url.rstrip('/').removesuffix('/metrics')}/metrics"


def refusal(address: str, status: int, keyed: bool) -> ScrapeError:
    if status in (401, 403):
        does = "does not accept the key" if keyed else "wants a key"
        return ScrapeError(f"{address} {does} (status {status}).", "Give its key with --api-key or in BITNET_API_KEY.")
    return ScrapeError(f"{address} answers with status {status}.", "Is this a bitnet server?")
