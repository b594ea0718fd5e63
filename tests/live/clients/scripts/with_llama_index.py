import asyncio
import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, key = f"{sys.argv[1].rstrip('/')}/v1", sys.argv[2]
same = {"api_base": url, "api_key": key, "model": "tiny", "temperature": 0, "max_tokens": 8, "context_window": 512}
chat = OpenAILike(**same, is_chat_model=True)
messages = [ChatMessage(role="user", content="the end")]
found = {
    "text": chat.chat(messages).message.content,
    "streamed": "".join(each.delta or "" for each in chat.stream_chat(messages)),
    "async": asyncio.run(chat.achat(messages)).message.content,
    "completion": OpenAILike(**same, is_chat_model=False).complete("the end").text,
}
print(json.dumps(found))
