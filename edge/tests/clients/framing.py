"""What Python's `websockets` does with frames, against the echo path.  framing.py URL [deflate]

With `deflate` the edge has to agree on compression, without it to decline.
"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory


async def check(url, deflate):
    async with connect(url, max_size=None) as socket:
        assert bool(socket.protocol.extensions) == deflate, socket.protocol.extensions
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


async def check_windows(url):
    """Whatever window is asked for, what comes back can be read with it, and nothing is taken over."""
    text = "".join(f"{at * 7919 % 1000} bottles of beer on the wall, " for at in range(2000))
    for bits in range(9, 16):
        offer = ClientPerMessageDeflateFactory(server_max_window_bits=bits, client_max_window_bits=bits)
        async with connect(url, extensions=[offer], compression=None) as socket:
            (agreed,) = socket.protocol.extensions
            assert agreed.remote_no_context_takeover and agreed.local_no_context_takeover, agreed
            assert agreed.remote_max_window_bits == bits, agreed
            for _ in range(3):
                await socket.send(text)
                assert await socket.recv() == text, f"{bits} bits"


async def main(url, deflate=""):
    async with asyncio.timeout(30):
        await check(url, deflate == "deflate")
        if deflate:
            await check_windows(url)


asyncio.run(main(*sys.argv[1:]))
