"""`bitnet chat` with its input from a pipe, and once on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet import BitNet, SamplingParams
from bitnet.cli.chat import Chat
from bitnet.cli.conversation import Conversation
from bitnet.engine import Sequence

Bitnet = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[bytes]"]
SHORT = ("--seed", "1", "-n", "6")


def test_each_line_is_answered(bitnet: Bitnet) -> None:
    result = bitnet("chat", *SHORT, stdin="hello\n\nagain\n")
    assert result.returncode == 0 and result.stdout.count("\n") >= 2 and "Traceback" not in result.stderr


def test_bye_leaves(bitnet: Bitnet) -> None:
    result = bitnet("chat", *SHORT, stdin="/bye\nhello\n")
    assert result.returncode == 0 and result.stdout == ""


def test_help_lists_every_command(bitnet: Bitnet) -> None:
    from bitnet.cli.chat_commands import COMMANDS

    text = bitnet("chat", stdin="/help\n").stderr
    assert all(name in text for name in COMMANDS)


def test_set_changes_a_parameter_and_show_shows_it(bitnet: Bitnet) -> None:
    text = bitnet("chat", stdin="/set temp 0.5\n/set stop \\n\\n\n/set seed none\n/show\n").stderr
    assert "temperature = 0.5" in text and 'stop = ["\\n\\n"]' in text and "seed = none" in text
    assert "context              0 of 4096 tokens" in text


def test_a_bad_command_changes_nothing_and_the_chat_goes_on(bitnet: Bitnet) -> None:
    stdin = "/nonsense\n/set top_p 7\n/set top_p x\n/set nothing 1\n/save\n/load /nonexistent/file\nhello\n"
    result = bitnet("chat", *SHORT, stdin=stdin)
    assert result.returncode == 0 and result.stdout
    for part in ("/nonsense", "expected 0 to 1", "'x'", "Names:", "name of a file", "/nonexistent/file"):
        assert part in result.stderr


def test_three_quotes_hold_several_lines(bitnet: Bitnet, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    bitnet("chat", *SHORT, stdin=f'"""one\ntwo"""\n"""three"""\n/save {file}\n')
    asked = [m["content"] for m in json.loads(file.read_text())["messages"] if m["role"] == "user"]
    assert asked == ["one\ntwo", "three"]


def test_three_quotes_that_nobody_closes_hold_the_rest(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("chat", *SHORT, stdin='"""one\ntwo\n')
    assert result.returncode == 0 and result.stdout.strip()


def test_a_switch_is_set_by_its_words_only(bitnet: Bitnet) -> None:
    text = bitnet("chat", stdin="/set ignore_eos yes\n/set ignore-eos maybe\n/set ignore_eos OFF\n").stderr
    assert text.splitlines()[-3:] == [
        "ignore_eos = true",
        "ignore_eos is 'maybe'; expected on or off.",
        "ignore_eos = false",
    ]


def test_a_saved_conversation_goes_on(bitnet: Bitnet, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    lines = ("/system be kind", "hello", f"/save {first}", "/clear", f"/load {first}", "again", f"/save {second}")
    bitnet("chat", *SHORT, stdin="\n".join(lines))
    saved = json.loads(second.read_text())
    assert saved["system"] == "be kind"
    assert [m["role"] for m in saved["messages"]] == ["user", "assistant", "user", "assistant"]
    assert saved["messages"][:2] == json.loads(first.read_text())["messages"]


def test_clear_forgets_the_conversation(bitnet: Bitnet, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    bitnet("chat", *SHORT, stdin=f"hello\n/clear\n/save {file}\n")
    assert json.loads(file.read_text())["messages"] == []


def test_what_no_longer_fits_is_said_and_nothing_is_dropped_unasked(bitnet: Bitnet, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    line = "x" * 30
    result = bitnet("chat", *SHORT, "--ctx-size", "64", stdin=f"{line}\n{line}\n/save {file}\n")
    assert "the context holds 64" in result.stderr and "/clear" in result.stderr
    assert [m["content"] for m in json.loads(file.read_text())["messages"] if m["role"] == "user"] == [line]


class Answers:
    """Somebody at the keyboard who answers `answer` to every question."""

    interactive = True

    def __init__(self, answer: str) -> None:
        self.answer, self.questions = answer, [""]

    def line(self, prompt: str) -> str:
        self.questions.append(prompt)
        return self.answer


@pytest.mark.parametrize(("answer", "kept"), [("y", ["second", "third"]), ("", ["first", "second"])])
def test_the_oldest_turns_are_forgotten_if_the_user_agrees(tiny_gguf: Path, answer: str, kept: list[str]) -> None:
    model, lines = BitNet(tiny_gguf, backend="reference", ctx_size=96), Answers(answer)
    chat = Chat(model, SamplingParams(max_tokens=4, seed=1), Conversation(), lines)
    for text in ("first", "second", "third"):
        chat.say(text + "." * 16)
    assert "oldest 1 question " in lines.questions[-1]
    assert [m["content"].rstrip(".") for m in chat.conversation.messages if m["role"] == "user"] == kept


def test_a_context_that_slides_forgets_the_oldest_turns_unasked_and_keeps_the_system_prompt(tiny_gguf: Path) -> None:
    model, lines = BitNet(tiny_gguf, backend="reference", ctx_size=96, ctx_overflow="slide"), Answers("")
    chat = Chat(model, SamplingParams(max_tokens=90, seed=1, ignore_eos=True), Conversation("be kind"), lines)
    kept, add_request = [], model.llm.add_request

    def seen(ids: list[int], params: SamplingParams, keep: int) -> Sequence:
        kept.append(model.tokenizer.decode(ids[:keep]))
        return add_request(ids, params, keep=keep)

    model.llm.add_request = seen  # type: ignore[method-assign,assignment]
    for text in ("first", "second", "x" * 100):
        chat.say(text + "." * 16)
    assert len(lines.questions) == 1  # nothing was asked
    assert [m["content"].rstrip(".") for m in chat.conversation.messages if m["role"] == "user"] == ["x" * 100]
    assert len(kept) == 3 and all("be kind" in text and "first" not in text for text in kept)
    assert len(set(kept)) == 1  # all that comes before a question, and nothing of one


def test_a_message_that_never_fits_is_refused(bitnet: Bitnet) -> None:
    result = bitnet("chat", *SHORT, "--ctx-size", "64", stdin="x" * 300 + "\n")
    assert result.returncode == 0 and result.stdout == "" and "too many" in result.stderr


def test_ctrl_c_stops_the_answer_only(start: Start) -> None:
    process = start("chat", "--ignore-eos")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(b"/show\n", timeout=60)
    assert process.returncode == 0 and b"[stopped]" in err and b"temperature" in err


def test_on_a_terminal_there_is_a_prompt_and_ctrl_d_leaves(start: Start, environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    environment["TERM"] = "xterm"
    process = start("chat", *SHORT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    wait_for_prompt(ours)
    os.write(ours, b"hello\r")
    wait_for_prompt(ours)
    os.write(ours, b"\x04")
    assert process.wait(60) == 0
    history = Path(environment["XDG_STATE_HOME"], "bitnet", "chat_history")
    assert "+hello" in history.read_text() and history.stat().st_mode & 0o077 == 0
    os.close(ours)


def wait_for_prompt(terminal: int) -> None:
    """Read what is shown until a line is being edited, which begins with turning on bracketed paste."""
    seen, deadline = b"", time.monotonic() + 60
    while b"\x1b[?2004h" not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no prompt, but {seen!r}"
        seen += os.read(terminal, 4096)
