// Alice and Bob talk through a real edge and router, in JSON, on Node's `ws`.  conversation.mjs URL CLIENTS_DIR [deflate]
//
// Exits 0 when everything went as client.proto says; otherwise the assertion that did not hold is on stderr.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { createRequire } from "node:module";

const [url, clientsDir, deflate] = process.argv.slice(2);
// The package lies in the target folder, not beside this file.
const { WebSocket } = createRequire(`${clientsDir}/`)("ws");

/** One connection. Frames that nobody waits for yet are kept until somebody does. */
class Client {
  #kept = [];
  #wake = () => {};

  /** Connects and says Connect. Returns the client and its Welcome. */
  static async open(user, fields = {}) {
    const client = new Client();
    client.socket = new WebSocket(url, "hawser.v1.json");
    client.socket.on("message", (data, isBinary) => {
      assert(!isBinary, "JSON travels as text");
      client.#kept.push(JSON.parse(data));
      client.#wake();
    });
    await once(client.socket, "open");
    assert.equal(client.socket.protocol, "hawser.v1.json");
    // Compression is offered in any case.
    const agreed = deflate ? "permessage-deflate" : "";
    assert.equal(client.socket.extensions, agreed);
    client.send({ connect: { token: user, deviceId: "interop", clientKind: "node", ...fields } });
    return [client, await client.receive("welcome")];
  }

  send(frame) {
    this.socket.send(JSON.stringify(frame));
  }

  async receive(kind) {
    for (;;) {
      const at = this.#kept.findIndex((frame) => kind in frame);
      if (at >= 0) return this.#kept.splice(at, 1)[0][kind];
      await new Promise((resolve) => (this.#wake = resolve));
    }
  }

  async ask(clientMessageId, payload) {
    this.send(toBob(clientMessageId, payload));
    const answer = await this.receive("sendAck");
    assert.equal(answer.clientMessageId, clientMessageId);
    return answer;
  }

  async close() {
    this.socket.close(1000);
    const [code] = await once(this.socket, "close");
    assert.equal(code, 1000);
  }
}

const toBob = (clientMessageId, payload) => ({
  send: { clientMessageId, toUser: "bob", payload: payload.toString("base64") },
});

async function converse() {
  const [alice, welcome] = await Client.open("alice");
  assert.equal(welcome.user, "alice");
  // 64-bit numbers are strings in protobuf's JSON: a JavaScript number would lose digits.
  assert.match(welcome.connectionId, /^[1-9][0-9]*$/);
  const payloadBytesMax = welcome.limits.payloadBytesMax;
  let [bob] = await Client.open("bob");

  // A message there, its receipt back.
  const answer = await alice.ask("first", Buffer.from("hello"));
  assert.match(answer.messageId, /^[1-9][0-9]*$/);
  let delivered = await bob.receive("deliver");
  assert.equal(delivered.sequence, "1");
  assert.equal(delivered.messageId, answer.messageId);
  assert.equal(delivered.from, "alice");
  assert.equal(Buffer.from(delivered.payload, "base64").toString(), "hello");
  bob.send({ ack: { sequence: "1" } });
  const receipt = await alice.receive("receipt");
  assert.equal(receipt.kind, "KIND_DELIVERED");
  assert.equal(receipt.user, "bob");
  assert.deepEqual(receipt.messageIds, [answer.messageId]);

  // The largest payload there is, as many fragments with pings between them.
  const largest = randomBytes(payloadBytesMax);
  const text = JSON.stringify(toBob("largest", largest));
  for (let at = 0; at < text.length; at += 10_000) {
    alice.socket.send(text.slice(at, at + 10_000), { fin: at + 10_000 >= text.length });
    alice.socket.ping(`at ${at}`);
  }
  const [pong] = await once(alice.socket, "pong");
  assert.equal(pong.toString(), "at 0");
  assert.equal((await alice.receive("sendAck")).error, undefined);
  delivered = await bob.receive("deliver");
  assert.equal(delivered.sequence, "2");
  assert(Buffer.from(delivered.payload, "base64").equals(largest));

  // One byte more is refused, and the connection stays.
  const refused = await alice.ask("too large", Buffer.alloc(payloadBytesMax + 1));
  assert.equal(refused.error.code, "CODE_TOO_LARGE");
  alice.send({ ping: { nonce: "18446744073709551615" } });
  assert.equal((await alice.receive("pong")).nonce, "18446744073709551615");

  // Bob goes without having acknowledged the second message; it waits for him.
  await bob.close();
  let bobsWelcome;
  [bob, bobsWelcome] = await Client.open("bob", { resumeCursor: "1" });
  assert.equal(bobsWelcome.resumed, true);
  assert.equal((await bob.receive("deliver")).sequence, "2");
  bob.send({ ack: { sequence: "2" } });

  // What is not JSON ends the connection with 1007, and only this one.
  bob.socket.send("{ not JSON");
  const [code] = await once(bob.socket, "close");
  assert.equal(code, 1007);
  await alice.close();
}

const late = setTimeout(() => {
  console.error("nothing came for too long");
  process.exit(1);
}, 30_000);
await converse();
clearTimeout(late);
