"""What a run says while it goes on: metrics as JSON lines, for TensorBoard if wanted, and on the terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bitnet.errors import ParameterError
from bitnet.formats.atomic import replacing

METRICS = "metrics.jsonl"


class Reporter:
    """end: of the clock that the bar follows. tensorboard: event files in `out` as well."""

    def __init__(self, out: Path, end: float, tensorboard: bool = False) -> None:
        self.path, self.end = out / METRICS, end
        self.events = events_writer(out / "tensorboard") if tensorboard else None
        self.writer: Any = None
        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=end)
            self.bar.start()

    def resume(self, step: int) -> None:
        """Forget what was written after `step`, which will be done again."""
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            with replacing(self.path) as file:
                file.write("".join(kept).encode())
        if self.events:
            self.writer = self.events(purge_step=step + 1)

    def say(self, step: int, clock: float, **values: Any) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps({"step": step, **finite})  # JSON has no NaN
        with self.path.open("a") as file:
            print(line, file=file)
        if self.writer:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(name, value, step)
        if self.bar:
            told = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, (int, float)))
            self.bar.update(self.task, completed=min(clock, self.end), description=f"step {step}  {told}")
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
        if self.writer:
            self.writer.close()


def events_writer(folder: Path) -> Callable[..., Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ParameterError("training.tensorboard needs a package.", "pip install tensorboard") from error
    return partial(SummaryWriter, str(folder))
