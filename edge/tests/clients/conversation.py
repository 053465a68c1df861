"""Alice and Bob talk through a real edge and router.  conversation.py URL ALICES_SUBPROTOCOL BOBS [deflate]

Exits 0 when everything went as client.proto says; otherwise the assertion that did not hold is on stderr.
"""

import asyncio
import sys

from hawser import Client, pb


async def converse(url, alices, bobs):
    alice, welcome = await Client.open(url, alices, "alice")
    assert welcome.user == "alice", welcome
    assert welcome.connection_id != 0 and welcome.time_ms > 0, welcome
    assert welcome.intervals.active_ms > 0 and welcome.limits.window_messages > 0, welcome
    bob, welcome = await Client.open(url, bobs, "bob")
    assert welcome.cursor == 0, welcome

    # A message there, its receipt back.
    answer = await ask(alice, "first", b"hello")
    assert answer.message_id != 0 and answer.time_ms > 0, answer
    delivered = await bob.receive("deliver")
    assert (delivered.sequence, delivered.message_id) == (1, answer.message_id), delivered
    assert (getattr(delivered, "from"), delivered.payload) == ("alice", b"hello"), delivered
    await bob.send(ack=pb.Ack(sequence=1))
    receipt = await alice.receive("receipt")
    assert (receipt.kind, receipt.user) == (pb.Receipt.KIND_DELIVERED, "bob"), receipt
    assert list(receipt.message_ids) == [answer.message_id], receipt

    # Said again, it is stored once: the same message id, and no sequence is used up.
    again = await ask(alice, "first", b"hello")
    assert again.message_id == answer.message_id, again

    # The largest payload there is, sent in pieces with a ping between them.
    largest = bytes(range(256)) * (welcome.limits.payload_bytes_max // 256)
    await send_in_pieces(alice, "largest", largest)
    assert not (await alice.receive("send_ack")).HasField("error")
    delivered = await bob.receive("deliver")
    assert delivered.sequence == 2 and delivered.payload == largest, delivered.sequence

    # One byte more is refused, and the connection stays.
    refused = await ask(alice, "too large", largest + b"!")
    assert refused.error.code == pb.Error.CODE_TOO_LARGE and not refused.error.retryable, refused
    await alice.send(ping=pb.Ping(nonce=2**64 - 1))
    assert (await alice.receive("pong")).nonce == 2**64 - 1

    # A frame that this edge does not know is told, and the connection stays.
    await alice.send()
    assert (await alice.receive("error")).code == pb.Error.CODE_UNKNOWN_FRAME

    # Bob goes without having acknowledged the second message, and misses a third.
    await bob.close()
    await ask(alice, "third", b"are you there?")
    bob, welcome = await Client.open(url, bobs, "bob", resume_cursor=1)
    assert welcome.resumed and welcome.cursor == 1, welcome
    resent, missed = await bob.receive("deliver"), await bob.receive("deliver")
    assert (resent.sequence, resent.payload) == (2, largest), resent.sequence
    assert (missed.sequence, missed.payload) == (3, b"are you there?"), missed
    await bob.send(ack=pb.Ack(sequence=3, read_sequence=3))

    # A second connection of the same device takes the place of the first, which is told so.
    newer, _ = await Client.open(url, bobs, "bob")
    assert (await bob.receive("error")).code == pb.Error.CODE_REPLACED
    await bob.socket.wait_closed()
    assert bob.socket.close_code == 1008, bob.socket.close_code

    await newer.close()
    await alice.close()


def message_to_bob(name, payload):
    return pb.Send(client_message_id=name, to_user="bob", payload=payload)


async def ask(client, name, payload):
    await client.send(send=message_to_bob(name, payload))
    answer = await client.receive("send_ack")
    assert answer.client_message_id == name, answer
    return answer


async def send_in_pieces(client, name, payload, piece=10_000):
    data = client.encode(send=message_to_bob(name, payload))
    pongs = []

    async def pieces():
        for start in range(0, len(data), piece):
            yield data[start : start + piece]
            pongs.append(await client.socket.ping())

    await client.socket.send(pieces())
    await asyncio.gather(*pongs)


async def main(url, alices, bobs, _deflate=None):
    async with asyncio.timeout(30):
        await converse(url, alices, bobs)


asyncio.run(main(*sys.argv[1:]))
