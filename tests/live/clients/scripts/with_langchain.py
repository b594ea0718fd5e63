import json
import sys

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

url, key = f"{sys.argv[1].rstrip('/')}/v1", sys.argv[2]
same = {"base_url": url, "api_key": key, "model": "tiny", "temperature": 0, "max_tokens": 8}
chat = ChatOpenAI(**same)
whole = chat.invoke([("human", "the end")])
embeddings = OpenAIEmbeddings(base_url=url, api_key=key, model="tiny", check_embedding_ctx_length=False)
found = {
    "text": whole.content,
    "usage": whole.usage_metadata,
    "reason": whole.response_metadata["finish_reason"],
    "streamed": "".join(chunk.content for chunk in chat.stream([("human", "the end")])),
    "batch": [each.content for each in chat.batch([[("human", "the end")]] * 3)],
    "completion": OpenAI(**same).invoke("the end"),
    "vectors": embeddings.embed_documents(["one", "two"]),
}
print(json.dumps(found))
