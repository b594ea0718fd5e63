"""What a line that begins with / does in a chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from bitnet.cli.conversation import Conversation
from bitnet.cli.options import NOT_HERE
from bitnet.cli.text import note
from bitnet.engine import SamplingParams
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.cli.chat import Chat


ALIASES = {"temp": "temperature", "repeat_penalty": "repetition_penalty"}
SWITCHES = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def show_help(chat: Chat, argument: str) -> None:
    for name, (words, _, summary) in COMMANDS.items():
        note(f"  {f'{name} {words}':<18} {summary}")
    note('  """                begins and ends a text of several lines')
    note("  Ctrl-C             stops the answer; Ctrl-D leaves")


def set_parameter(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    name = ALIASES.get(name, name.replace("-", "_"))
    kinds = {name: kind for name, kind in get_type_hints(SamplingParams).items() if name not in NOT_HERE}
    if name not in kinds or not value.strip():
        raise ParameterError(f"/set {argument}: a name and a value are expected.", f"Names: {', '.join(kinds)}.")
    chat.params = replace(chat.params, **{name: parsed(name, kinds[name], value.strip())})
    note(f"{name} = {shown(getattr(chat.params, name))}")


def parsed(name: str, kind: Any, text: str) -> Any:
    """`text` as a value of this type; SamplingParams itself checks the bounds."""
    if kind == tuple[str, ...]:
        return () if text == "none" else (text.encode().decode("unicode_escape") if text.isascii() else text,)
    if text == "none" and type(None) in get_args(kind):
        return None
    if kind is bool:
        if text.lower() not in SWITCHES:
            raise ParameterError(f"{name} is {text!r}; expected on or off.")
        return SWITCHES[text.lower()]
    try:
        return float(text) if kind is float else int(text)
    except ValueError:
        raise ParameterError(f"{name} is {text!r}; expected a number.") from None


def shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (tuple, str)) else str(value).lower()


def show(chat: Chat, argument: str) -> None:
    for each in fields(chat.params):
        if each.name in NOT_HERE:
            continue
        note(f"  {each.name:<20} {shown(getattr(chat.params, each.name)):<10} {each.metadata['help']}")
    note(f"  system               {shown(chat.conversation.system)}")
    note(f"  context              {chat.used} of {chat.model.llm.ctx_size} tokens")


def clear(chat: Chat, argument: str) -> None:
    chat.conversation = Conversation(chat.conversation.system)
    chat.used = 0
    note("The conversation begins anew.")


def save(chat: Chat, argument: str) -> None:
    chat.conversation.save(file(argument, "/save"))
    note(f"{len(chat.conversation.messages)} messages are in {argument}.")


def load(chat: Chat, argument: str) -> None:
    chat.conversation = Conversation.load(file(argument, "/load"))
    note(f"{len(chat.conversation.messages)} messages are read from {argument}.")


def file(argument: str, command: str) -> Path:
    if not argument:
        raise ParameterError(f"{command} needs the name of a file.")
    return Path(argument).expanduser()


def system(chat: Chat, argument: str) -> None:
    chat.conversation.system = argument
    note("The model is told this first." if argument else "The model is told nothing first.")


def bye(chat: Chat, argument: str) -> None:
    raise EOFError


# Name -> what follows it, what it does, what /help says.
COMMANDS: dict[str, tuple[str, Callable[[Chat, str], None], str]] = {
    "/help": ("", show_help, "list the commands"),
    "/set": ("NAME VALUE", set_parameter, "change a sampling parameter"),
    "/show": ("", show, "show the sampling parameters and the context"),
    "/system": ("TEXT", system, "set the system prompt; without a text: remove it"),
    "/clear": ("", clear, "forget the conversation, keep the system prompt"),
    "/save": ("FILE", save, "write the conversation to a file"),
    "/load": ("FILE", load, "go on with the conversation of a file"),
    "/bye": ("", bye, "leave"),
}


def run_command(chat: Chat, text: str) -> None:
    name, _, argument = text.partition(" ")
    if name not in COMMANDS:
        raise ParameterError(f"There is no command {name}.", "/help lists them.")
    COMMANDS[name][1](chat, argument.strip())
