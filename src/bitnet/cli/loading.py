"""Opening the model that the options name, with a progress line when it takes long."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from bitnet.api import BitNet

PATIENCE = 0.5  # seconds before a progress line appears


def open_model(
    model: Path | None,
    threads: int,
    ctx_size: int,
    kv: str,
    head: str,
    backend: str,
    weights: str,
    kernel: str,
    force: bool,
) -> BitNet:
    progress = Progress("loading")
    try:
        return BitNet(
            model,
            threads=threads,
            backend=backend,
            weights=weights,
            kernel=kernel,
            ctx_size=ctx_size,
            kv=kv,
            head=head,
            max_sequences=1,
            progress=progress,
            force=force,
        )
    finally:
        progress.clear()


class StatusLine:
    """A line on a terminal that tells what is going on, and vanishes."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._shown = False


class Progress(StatusLine):
    """`loading  45 %  3 s left`, once it has taken a moment; called with what is done and what there is in all."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self._verb, self._started = verb, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._started
        if elapsed > PATIENCE and 0 < done < total:
            self.show(f"{self._verb}  {100 * done // total} %  {elapsed * (total - done) / done:.0f} s left")
        elif done == total:
            self.clear()
