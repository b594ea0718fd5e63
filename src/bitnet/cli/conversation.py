"""A conversation: what was said, whether it still fits, and how it is kept in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from bitnet.api import BitNet
from bitnet.errors import ParameterError

Message = dict[str, str]


@dataclass
class Conversation:
    """messages: the turns, {"role": "user" or "assistant", "content"}. system: what the model is told first."""

    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def ids(self, model: BitNet) -> list[int]:
        """The tokens of everything said, up to where the answer begins."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return model.chat_template.apply([*first, *self.messages], model.tokenizer)

    def without_oldest(self) -> Conversation | None:
        """The same without its first question and answer; None where only the last question is left."""
        questions = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return Conversation(self.system, self.messages[questions[1] :]) if len(questions) > 1 else None

    def save(self, path: Path) -> None:
        text = json.dumps({"system": self.system, "messages": self.messages}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in data["messages"]]
            return cls(str(data.get("system", "")), messages)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ParameterError(f"{path} is not a conversation that /save wrote.") from error
