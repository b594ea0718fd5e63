"""A bounded queue: who waits gets a turn in order, the rest is told when to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import serving

from bitnet.server.admission import Admission
from bitnet.server.errors import ApiError


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]

    run.__name__ = test.__name__
    return run


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@in_loop
async def test_turns_come_in_the_order_of_arrival() -> None:
    admission, order = Admission(2, 10, 60), []

    async def visit(name: int, count: int) -> None:
        place = await admission.enter(count)
        order.append(name)
        await asyncio.sleep(0)
        for _ in range(count):
            place.finished()

    first = await admission.enter(2)
    visits = [asyncio.ensure_future(visit(name, count)) for name, count in enumerate((1, 2, 1, 5, 1))]
    await settle()
    assert admission.waiting == 1 + 2 + 1 + 2 + 1 and not order  # five want all there is: two
    first.finished()
    first.finished()
    await asyncio.gather(*visits)
    assert order == [0, 1, 2, 3, 4] and admission.active == admission.waiting == 0


@in_loop
async def test_a_full_queue_refuses_with_a_time() -> None:
    admission = Admission(1, 1, 60)
    place = await admission.enter(1)
    waiting = asyncio.ensure_future(admission.enter(1))
    await settle()
    with pytest.raises(ApiError) as caught:
        await admission.enter(1)
    assert caught.value.status_code == 429 and 1 <= int(caught.value.headers["Retry-After"]) <= 120
    place.finished()
    (await waiting).close()
    assert admission.active == 0


@in_loop
async def test_who_leaves_the_queue_holds_up_nobody() -> None:
    admission = Admission(2, 10, 60)
    place = await admission.enter(1)
    large, small = (asyncio.ensure_future(admission.enter(count)) for count in (2, 1))
    await settle()
    assert admission.waiting == 3  # the small one does not overtake
    large.cancel()
    (await small).close()
    place.close()
    assert admission.active == admission.waiting == 0


@in_loop
async def test_a_turn_that_comes_as_its_owner_leaves_goes_to_the_next() -> None:
    admission = Admission(1, 10, 60)
    place = await admission.enter(1)
    leaving, next_one = (asyncio.ensure_future(admission.enter(1)) for _ in range(2))
    await settle()
    place.close()
    leaving.cancel()  # has its turn, and has not run since
    (await next_one).close()
    assert admission.active == admission.waiting == 0


@in_loop
async def test_the_wait_is_bounded() -> None:
    admission = Admission(1, 10, 0.01)
    place = await admission.enter(1)
    with pytest.raises(ApiError, match="429|turn") as caught:
        await admission.enter(1)
    assert caught.value.code == "queue_timeout" and admission.waiting == 0
    place.close()
    (await admission.enter(1)).close()


@in_loop
async def test_the_time_to_come_again_grows_with_the_queue() -> None:
    admission = Admission(1, 1000, 60)
    assert admission.retry_after() >= 1
    for _ in range(10):
        admission.finished()
        await asyncio.sleep(0.1)
    few = admission.retry_after()
    admission.waiting = 500
    assert few <= 2 < 30 < admission.retry_after() <= 120


def test_over_http_the_overload_is_429_and_the_others_are_answered() -> None:
    pace = serving.Pace()
    model = serving.stand(serving.Paced(steps=pace), max_sequences=2)
    with serving.serving(model, queue_size=3) as client, ThreadPoolExecutor(10) as pool:
        served = client.app.state.server.registry.loaded["tiny"]
        futures = [pool.submit(client.chat, "a", max_tokens=4) for _ in range(2)]
        serving.wait_until(lambda: served.admission.active == 2)
        futures += [pool.submit(client.chat, "a", max_tokens=4) for _ in range(3)]
        serving.wait_until(lambda: served.admission.waiting == 3)
        refused: list[Any] = [client.chat("a"), client.chat("a", stream=True), client.post(
            "/v1/embeddings", json={"input": "a"})]  # fmt: skip
        pace.end()
        assert [future.result().status_code for future in futures] == [200] * 5
        for response in refused:
            assert response.status_code == 429
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert response.json()["error"]["code"] == "queue_full"
            assert 1 <= int(response.headers["retry-after"]) <= 120
        assert 'bitnet_requests_total{model="tiny",outcome="rejected"} 2.0' in client.get("/metrics").text
        assert served.admission.active == served.admission.waiting == 0
