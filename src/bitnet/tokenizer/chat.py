"""A conversation as the model was taught to read one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitnet.errors import ParameterError
from bitnet.tokenizer.template_renderer import RENDERER, render_here

if TYPE_CHECKING:
    from bitnet.formats.checkpoint import Checkpoint
    from bitnet.tokenizer.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]

# microsoft/bitnet-b1.58-2B-4T, as in its model card; the template in its GGUF file is another one, and wrong.
BITNET = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | trim }}{{ end_of_turn }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CHATML = (
    "{{ bos_token if add_bos }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PLAIN = (
    "{{ bos_token if add_bos }}{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_BITNET_ARCHITECTURES = ("bitnet-b1.58", "bitnet-25", "bitnet-b158", "bitnet_b158")
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # characters without meaning, case or width: a template lets them pass


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """source: Jinja, with the variables that transformers gives to chat templates.

    name: "bitnet-b1.58", "stored", "llama-3", "chatml" or "plain". warning: why this one, where the model has none.
    stop: texts that end the assistant's turn, beside the tokenizer's eos_ids.
    """

    source: str
    name: str = "stored"
    warning: str = ""
    stop: tuple[str, ...] = ()

    def render(
        self, messages: Messages, tokenizer: Tokenizer, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as one text, control tokens by name."""
        return self._render(_checked(messages), tokenizer, add_generation_prompt, variables)

    def apply(
        self, messages: Messages, tokenizer: Tokenizer, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of the conversation. Names of control tokens in `messages` or `variables` stay text.

        messages: {"role", "content"}; content is a text, a list of {"type": "text", "text"}, or None beside tool calls.
        Raises ParameterError naming the message, or where the template refuses them; FormatError for a bad template.
        """
        return tokenizer.encode_pieces(self.pieces(messages, tokenizer, add_generation_prompt, **variables))

    def pieces(
        self, messages: Messages, tokenizer: Tokenizer, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int | str]:
        """The conversation as texts and, between them, the ids of the template's control tokens; `apply` joins them."""
        shield = _Shield(tokenizer)
        given = shield.cover([_checked(messages), variables])
        rendered = self._render(given[0], tokenizer, add_generation_prompt, given[1])
        spans = tokenizer.control_spans(rendered)
        return [shield.uncover(text) if token is None else token for token, text in spans]

    def _render(
        self, messages: Any, tokenizer: Tokenizer, add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        standard = {
            "tools": None,
            "documents": None,
            **special_tokens(tokenizer),
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        render = RENDERER.render if self.name == "stored" else render_here
        return render(self.source, standard)


def special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    ids |= {"unk_token": tokenizer.unk_id, "pad_token": tokenizer.pad_id}
    names = {name: "" if i is None else tokenizer.vocabulary.tokens[i] for name, i in ids.items()}
    end = "<|eot_id|>" if tokenizer.id_of("<|eot_id|>") is not None else names["eos_token"]
    return {**names, "end_of_turn": end, "add_bos": tokenizer.add_bos}


class _Shield:
    """Keeps control tokens out of what users say.

    Before rendering, the name of a control token in a user's text becomes one private-use character, which a template
    passes on like any letter. After rendering, the text is cut at the control tokens, all of them now the template's
    own; then the names come back, into pieces that are encoded as text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._name_of: dict[str, str] = {}
        self._char_of: dict[str, str] = {}

    def cover(self, value: Any) -> Any:
        taken = {char for text in _texts(value) for char in text if ord(char) in _PRIVATE_USE}
        self._free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        return self._cover(value)

    def _cover(self, value: Any) -> Any:
        if isinstance(value, str):
            spans = self._tokenizer.control_spans(value)
            return "".join(text if token is None else self._char(text) for token, text in spans)
        if isinstance(value, Mapping):
            return {self._cover(key): self._cover(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._cover(entry) for entry in value]
        return value

    def _char(self, name: str) -> str:
        if name not in self._char_of:
            self._char_of[name] = next(self._free)
            self._name_of[self._char_of[name]] = name
        return self._char_of[name]

    def uncover(self, text: str) -> str:
        for char, name in self._name_of.items():
            text = text.replace(char, name)
        return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(key)
            yield from _texts(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _texts(entry)


def _checked(messages: Messages) -> list[dict[str, Any]]:
    """The messages, each content one text."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ParameterError(f"messages is a {type(messages).__name__}; expected a list of messages.")
    if not messages:
        raise ParameterError("messages is empty; at least one message is needed.")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ParameterError(f'{name} is a {type(message).__name__}; expected {{"role": ..., "content": ...}}.')
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise ParameterError(f"{name}.role is {role!r}; expected a text such as 'user'.")
    return {**message, "content": _content(message, name)}


def _content(message: Mapping[str, Any], name: str) -> str | None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise ParameterError(f"{name}.content is {content!r}; expected a text, or a list of text parts.")
    return "".join(_part(part, f"{name}.content[{i}]") for i, part in enumerate(content))


def _part(part: Any, name: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise ParameterError(f'{name} is a part of type {kind!r}; only {{"type": "text", "text": ...}} is supported.')


def chat_template_for(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ChatTemplate:
    """BitNet's own template for BitNet; else the stored one; else, with a warning, one that suits the vocabulary."""
    if _is_bitnet(checkpoint.architecture, tokenizer):
        return ChatTemplate(BITNET, "bitnet-b1.58")
    if tokenizer.chat_template:
        return ChatTemplate(tokenizer.chat_template)
    name, source, stop = _fallback(tokenizer)
    return ChatTemplate(source, name, f"The model has no chat template; the {name} one is used in its place.", stop)


def _is_bitnet(architecture: str, tokenizer: Tokenizer) -> bool:
    """2B-4T and kin. "bitnet" alone may also be 1bitLLM's base models, which have SentencePiece and no turns."""
    if architecture in _BITNET_ARCHITECTURES:
        return True
    return architecture == "bitnet" and tokenizer.id_of("<|eot_id|>") is not None


def _fallback(tokenizer: Tokenizer) -> tuple[str, str, tuple[str, ...]]:
    if tokenizer.id_of("<|start_header_id|>") is not None:
        return "llama-3", LLAMA3, ()
    if tokenizer.id_of("<|im_start|>") is not None:
        return "chatml", CHATML, ()
    return "plain", PLAIN, ("\nUser:",)
