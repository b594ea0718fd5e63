"""While the engine is in a step, however long that takes, the server answers everything that needs no step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import serving

FREE = ("/health", "/ready", "/metrics", "/slots", "/props", "/v1/models", "/")


def slots(client: serving.Client) -> Any:
    return client.get("/slots").json()


def test_a_step_that_does_not_end_holds_nobody_else_up() -> None:
    pace = serving.Pace()
    with serving.serving(serving.stand(serving.Paced(steps=pace), max_sequences=2)) as client:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.chat, max_tokens=5) for _ in range(3)]  # one more than there are places
            serving.wait_until(lambda: any(slot["is_processing"] for slot in slots(client)))
            assert [client.get(path).status_code for path in FREE] == [200] * len(FREE)
            assert client.post("/tokenize", json={"content": "the end"}).json()["tokens"]
            refused = client.chat(max_tokens=10**6, temperature=-1)
            assert refused.status_code == 400
            assert not any(each.done() for each in asked)
            pace.end()
            assert {each.result().json()["usage"]["completion_tokens"] for each in asked} == {5}
        assert slots(client) == []
