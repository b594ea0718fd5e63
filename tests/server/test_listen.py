"""The socket that the server listens on."""

from __future__ import annotations

import asyncio
import socket

from bitnet.server.listen import bind


def test_nothing_waits_for_an_acknowledgement() -> None:
    """Headers and body are two writes: under Nagle's algorithm the second waits for the client, 40 ms on Linux."""

    async def delay_is_off() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted: socket.socket = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = bind("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            result = await asyncio.wait_for(found, 30)
            writer.close()
        return result

    assert asyncio.run(delay_is_off()) != 0
