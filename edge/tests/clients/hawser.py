"""A Hawser client on Python's `websockets`, for both subprotocols; what the scripts beside it speak with.

The messages are generated from proto/client.proto by Google's protobuf, and so is their JSON form: nothing
of Hawser's own code is used, which is the point.
"""

import collections
import pathlib
import sys
import tempfile

from google.protobuf import json_format
from grpc_tools import protoc
from websockets.asyncio.client import connect

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"
# What the edge has to agree on: the last argument of the script.
EXPECTS_DEFLATE = sys.argv[-1] == "deflate"
BINARY, JSON = "hawser.v1.proto", "hawser.v1.json"


def _generate():
    with tempfile.TemporaryDirectory() as folder:
        if protoc.main(["protoc", f"-I{PROTO}", f"--python_out={folder}", "client.proto"]) != 0:
            raise SystemExit("client.proto does not compile")
        sys.path.insert(0, folder)
        import client_pb2

        sys.path.remove(folder)
        return client_pb2


pb = _generate()


class Client:
    """One connection. Frames that nobody waits for yet are kept until somebody does."""

    def __init__(self, socket, subprotocol):
        self.socket = socket
        self.json = subprotocol == JSON
        self.kept = collections.deque()

    @classmethod
    async def open(cls, url, subprotocol, user, **fields):
        """Connects and says Connect. Returns the client and its Welcome."""
        # The default offer of compression stays: an edge has to decline what it is not to do.
        socket = await connect(url, subprotocols=[subprotocol], max_size=None)
        assert socket.subprotocol == subprotocol, socket.subprotocol
        assert bool(socket.protocol.extensions) == EXPECTS_DEFLATE, socket.protocol.extensions
        client = cls(socket, subprotocol)
        connection = pb.Connect(token=user, device_id="interop", client_kind="python", **fields)
        await client.send(connect=connection)
        return client, await client.receive("welcome")

    def encode(self, **frame):
        message = pb.ClientFrame(**frame)
        return json_format.MessageToJson(message) if self.json else message.SerializeToString()

    async def send(self, **frame):
        await self.socket.send(self.encode(**frame))

    async def receive(self, kind):
        """The next frame of this kind."""
        for frame in self.kept:
            if frame.WhichOneof("frame") == kind:
                self.kept.remove(frame)
                return getattr(frame, kind)
        while True:
            data = await self.socket.recv()
            assert isinstance(data, str) == self.json, f"{type(data)} is not for this subprotocol"
            frame = json_format.Parse(data, pb.ServerFrame()) if self.json else pb.ServerFrame.FromString(data)
            if frame.WhichOneof("frame") == kind:
                return getattr(frame, kind)
            self.kept.append(frame)

    async def close(self):
        """Closes with 1000 and checks that the edge said the same."""
        await self.socket.close()
        assert self.socket.close_code == 1000, self.socket.close_code
