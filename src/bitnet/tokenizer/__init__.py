"""Text to token ids and back: a tokenizer read from a GGUF file or a Hugging Face folder, streaming, and chat."""

from bitnet.tokenizer.chat import ChatTemplate, chat_template_for
from bitnet.tokenizer.detokenizer import StreamDecoder
from bitnet.tokenizer.stop_strings import StopStrings
from bitnet.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StopStrings", "StreamDecoder", "Tokenizer", "chat_template_for"]
