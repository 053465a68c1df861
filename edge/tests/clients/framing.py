"""What Python's `websockets` does with frames, against the echo path.  framing.py URL"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


async def check(url):
    async with connect(url, max_size=None) as socket:
        for size in (0, 1, 125, 126, 65_535, 65_536):
            for message in (bytes(size), "ä" * (size // 2)):
                await socket.send(message)
                assert await socket.recv() == message, f"{type(message)} of {size}"

        # Fragments come back as one message; a ping between them is answered before it.
        async def pieces():
            yield "grüße "
            await (await socket.ping("between"))
            yield ""
            yield "from afar"

        await socket.send(pieces())
        assert await socket.recv() == "grüße from afar"

    assert socket.close_code == 1000, socket.close_code

    # A code of the application's own comes back as it was sent (RFC 6455 section 5.5.1).
    socket = await connect(url)
    await socket.close(3456, "enough")
    assert socket.close_code == 3456, socket.close_code

    # Text that is not UTF-8.
    socket = await connect(url)
    await socket.send(b"\xff\xfe", text=True)
    try:
        await socket.recv()
        raise AssertionError("broken UTF-8 was echoed")
    except ConnectionClosed as closed:
        assert closed.rcvd.code == 1007, closed


async def main(url):
    async with asyncio.timeout(30):
        await check(url)


asyncio.run(main(*sys.argv[1:]))
