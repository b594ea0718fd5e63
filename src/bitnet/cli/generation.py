"""One generation as a command runs it: text as it comes, and numbers at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from bitnet.api import BitNet, Stats
from bitnet.cli.text import note
from bitnet.engine import Sequence


def stream(model: BitNet, sequence: Sequence, write: Callable[[str], None]) -> None:
    """Pass the text of a queued sequence to `write`; whatever stops this ends the sequence too."""
    try:
        for output in model.llm.run([sequence]):
            if output.text:
                write(output.text)
    finally:
        model.llm.abort(sequence)  # does nothing to one that has finished


def note_slid(sequence: Sequence) -> None:
    """Say what was dropped from a full context."""
    if sequence.slid:
        note(f"[The context was full: {sequence.slid} tokens after the first {sequence.keep} were let go.]")


@dataclass(frozen=True, slots=True)
class Report:
    """Rates in tokens per second, times in seconds, memory in bytes; None where nothing was measured.

    profile: the file with the settings of `bitnet tune` that were used, if any.
    """

    prompt_tokens: int
    prompt_per_second: float | None
    generated_tokens: int
    generated_per_second: float | None
    drafted: int  # guesses at tokens
    accepted: int  # those that were right
    acceptance: float | None
    tokens_per_step: float | None
    slid: int  # tokens that a full context let go
    cached: int  # tokens of the prompt that were known from before
    time_to_first_token: float
    context_used: int
    context_size: int
    peak_rss: int
    isa: str
    threads: int
    finish_reason: str
    profile: str | None

    @classmethod
    def of(cls, model: BitNet, sequence: Sequence) -> Report:
        stats = Stats.of(sequence)
        isa, threads = machine(model)
        return cls(
            stats.prompt_tokens,
            rate(stats.prompt_tokens - stats.cached, stats.prompt_seconds),
            stats.generated_tokens,
            rate(stats.generated_tokens - 1, stats.generated_seconds),  # the first came with the prompt
            stats.drafted,
            stats.accepted,
            stats.accepted / stats.drafted if stats.drafted else None,
            stats.generated_tokens / stats.steps if stats.steps else None,
            stats.slid,
            stats.cached,
            stats.prompt_seconds,
            len(sequence),
            model.llm.ctx_size,
            peak_rss(),
            isa,
            threads,
            stats.finish_reason,
            str(model.profile.path) if model.tuned else None,
        )

    def line(self) -> str:
        return " | ".join(
            (
                f"prompt {self.prompt_tokens}{self.known()} @ {shown(self.prompt_per_second)} t/s",
                f"generated {self.generated_tokens} @ {shown(self.generated_per_second)} t/s",
                *self.guesses(),
                f"TTFT {1000 * self.time_to_first_token:.0f} ms",
                f"context {self.context_used}/{self.context_size}",
                f"peak RSS {self.peak_rss / 2**20:.0f} MiB",
                f"{self.isa}, {self.threads} thread{'s' * (self.threads != 1)}{', tuned' * (self.profile is not None)}",
            )
        )

    def known(self) -> str:
        return f" ({self.cached} cached)" if self.cached else ""

    def guesses(self) -> list[str]:
        """How well the guesses at tokens went; nothing where there were none."""
        if self.acceptance is None or self.tokens_per_step is None:
            return []
        share = f"{self.accepted} of {self.drafted} guesses right ({self.acceptance:.0%})"
        return [f"{share}, {self.tokens_per_step:.2f} tokens a step"]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None


def shown(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1f}"


def machine(model: BitNet) -> tuple[str, int]:
    """The instruction set, or else the backend, and the number of threads that the model runs on."""
    name = model.llm.model.ops.name
    if not name.startswith(("cpu", "tvm", "compiled")):
        return name, 1
    import bitnet._core as _core

    return _core.isa() if name == "cpu" else name, _core.threads()


def peak_rss() -> int:
    """The most memory that this process ever held, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
