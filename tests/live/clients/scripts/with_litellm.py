import asyncio
import json
import sys

import litellm

url, key = f"{sys.argv[1].rstrip('/')}/v1", sys.argv[2]
same = {"api_base": url, "api_key": key, "num_retries": 0}
ask = {**same, "model": "openai/tiny", "messages": [{"role": "user", "content": "the end"}], "max_tokens": 8}


def refusal(**options):
    try:
        litellm.completion(**{**ask, **options})
    except Exception as error:
        return type(error).__name__


async def later():
    answers = await asyncio.gather(*(litellm.acompletion(**ask, temperature=0) for _ in range(3)))
    return [each.choices[0].message.content for each in answers]


whole = litellm.completion(**ask, temperature=0)
chunks = list(litellm.completion(**ask, temperature=0, stream=True, stream_options={"include_usage": True}))
completion = litellm.text_completion(
    **same, model="text-completion-openai/tiny", prompt="the end", max_tokens=8, temperature=0
)
vectors = litellm.embedding(**same, model="openai/tiny", input=["one", "two"], encoding_format="float")
found = {
    "text": whole.choices[0].message.content,
    "usage": whole.usage.total_tokens,
    "streamed": "".join(each.choices[0].delta.content or "" for each in chunks if each.choices),
    "async": asyncio.run(later()),
    "completion": completion.choices[0].text,
    "vectors": [each["embedding"] for each in vectors.data],
    "no such model": refusal(model="openai/other"),
    "wrong key": refusal(api_key="wrong"),
    "too long": refusal(messages=[{"role": "user", "content": "a" * 3000}]),
    "out of range": refusal(temperature=-1),
}
print(json.dumps(found))
