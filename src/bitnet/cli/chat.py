"""`bitnet chat`: talk with a model."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.api import BitNet, sampling_params
from bitnet.cli.chat_commands import COMMANDS, run_command
from bitnet.cli.conversation import Conversation
from bitnet.cli.generation import Report, note_slid, stream
from bitnet.cli.lines import Lines, Pipe, Terminal, read_turn
from bitnet.cli.loading import open_model
from bitnet.cli.options import (
    KV,
    Backend,
    CtxOverflow,
    CtxSize,
    Draft,
    DraftTokens,
    Force,
    Head,
    Kernel,
    Model,
    Profile,
    Stats,
    Threads,
    Weights,
)
from bitnet.cli.text import note, write
from bitnet.engine import EngineConfig, SamplingParams
from bitnet.errors import BitNetError

ENGINE = EngineConfig()
ROOM = 8  # an answer may take at least an eighth of the context


def command(
    model: Model = None,
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
    load: Annotated[Path | None, typer.Option("--load", help="Go on with a conversation that /save wrote.")] = None,
    threads: Threads = 0,
    ctx_size: CtxSize = ENGINE.ctx_size,
    kv: KV = ENGINE.kv,
    head: Head = ENGINE.head,
    backend: Backend = "cpu",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    force: Force = False,
    profile: Profile = True,
    stats: Stats = False,
    draft: Draft = None,
    draft_tokens: DraftTokens = ENGINE.draft_tokens,
    ctx_overflow: CtxOverflow = ENGINE.ctx_overflow,
    **sampling: Any,
) -> None:
    params = sampling_params(sampling.pop("max_tokens"), sampling)
    conversation = Conversation.load(load) if load is not None else Conversation()
    if system:
        conversation.system = system
    bitnet = open_model(
        model,
        threads=threads,
        ctx_size=ctx_size,
        kv=kv,
        head=head,
        backend=backend,
        weights=weights,
        kernel=kernel,
        force=force,
        profile=profile,
        draft=draft,
        draft_tokens=draft_tokens,
        ctx_overflow=ctx_overflow,
    )
    lines = Terminal(COMMANDS) if sys.stdin.isatty() and sys.stdout.isatty() else Pipe()
    if bitnet.chat_template.warning:
        note(bitnet.chat_template.warning)
    if lines.interactive:
        note(f"{bitnet.path.name}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    Chat(bitnet, params, conversation, lines, stats).loop()


class Chat:
    """A conversation with a model, one turn after the other. used: tokens of context that the last turn took."""

    def __init__(
        self, model: BitNet, params: SamplingParams, conversation: Conversation, lines: Lines, stats: bool = False
    ) -> None:
        self.model, self.params, self.conversation = model, params, conversation
        self.lines, self.stats, self.used = lines, stats, 0

    def loop(self) -> None:
        while True:
            try:
                text = read_turn(self.lines)
                if text is None:
                    return
                self.turn(text)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.lines.interactive:
                    raise
                note("Ctrl-D or /bye leaves.")
            except (BitNetError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                note(str(error))

    def turn(self, text: str) -> None:
        if text.startswith("/"):
            run_command(self, text)
        elif text.strip():
            self.say(text)

    def say(self, text: str) -> None:
        """Put `text` to the model and show its answer; what does not fit changes nothing."""
        asked = Conversation(self.conversation.system, [*self.conversation.messages])
        asked.add("user", text)
        fit = self.fit(asked)
        if fit is None:
            return
        fitting, ids = fit
        stop = (*self.params.stop, *self.model.chat_template.stop)
        keep = self.first_tokens(fitting, ids) if self.slides else None
        sequence = self.model.llm.add_request(ids, replace(self.params, stop=stop), keep=keep)
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            write(piece)

        with suppress(KeyboardInterrupt):
            stream(self.model, sequence, show)
        write("\n")
        fitting.add("assistant", "".join(pieces).strip())
        self.conversation, self.used = fitting, len(sequence)
        note_slid(sequence)
        if sequence.finish_reason == "abort":
            note("[stopped]")
        elif len(sequence) >= self.model.llm.ctx_size:
            note("[The context is full, so the answer was cut. /clear begins anew.]")
        if self.stats:
            note(Report.of(self.model, sequence).line())

    def fit(self, asked: Conversation) -> tuple[Conversation, list[int]] | None:
        """The conversation and its tokens, with room for an answer; without its oldest turns if the user agrees."""
        size, room = self.model.llm.ctx_size, self.room()
        fitting, ids = asked, asked.ids(self.model)
        count, dropped = len(ids), 0
        while len(ids) + room > size:
            shorter = fitting.without_oldest()
            if shorter is None:
                if self.slides:
                    return fitting, ids
                note(f"This message takes {len(ids)} tokens of the context's {size}: too many.")
                return None
            fitting, ids, dropped = shorter, shorter.ids(self.model), dropped + 1
        if dropped:
            note(f"The conversation has {count} tokens; the context holds {size}, and the answer needs {room} of them.")
            if not self.agrees(f"Forget the oldest {dropped} question{'s' * (dropped > 1)} and go on? [y/N] "):
                note("Nothing was forgotten or asked. /clear begins anew; /save FILE keeps the conversation.")
                return None
        return fitting, ids

    def first_tokens(self, fitting: Conversation, ids: list[int]) -> int:
        """How many of the conversation's tokens come before the first question: the system prompt's."""
        empty = Conversation(fitting.system, [{"role": "user", "content": ""}]).ids(self.model)
        return next((i for i, pair in enumerate(zip(ids, empty)) if pair[0] != pair[1]), min(len(ids), len(empty)))

    @property
    def slides(self) -> bool:
        """Whether the user has agreed once and for all that a full context lets go of something."""
        return self.model.llm.config.ctx_overflow == "slide"

    def room(self) -> int:
        most = self.model.llm.ctx_size // ROOM
        return min(most, self.params.max_tokens or most)

    def agrees(self, question: str) -> bool:
        if self.slides:
            return True
        answer = self.lines.line(question) if self.lines.interactive else None
        return (answer or "").strip().lower() in ("y", "yes")
