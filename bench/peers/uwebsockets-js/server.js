'use strict';
// Echo on uWebSockets.js: node server.js PORT

const uWS = require('@trufflesuite/uws-js-unofficial');

// The package falls back to plain JavaScript when it holds no binary for this Node.js: another server than the one meant.
if (!Object.keys(require.cache).some((path) => /uws_[^/]*\.node$/.test(path))) {
  console.error(`no native binary for Node.js ${process.version}: versions 18 and 20 have one`);
  process.exit(1);
}

uWS
  .App()
  .ws('/*', {
    compression: uWS.DISABLED,
    idleTimeout: 120,
    sendPingsAutomatically: true,
    maxPayloadLength: 1024 * 1024,
    maxBackpressure: 16 * 1024 * 1024,
    message: (socket, message, isBinary) => {
      socket.send(message, isBinary);
    },
  })
  .listen('127.0.0.1', Number(process.argv[2]), (listener) => {
    if (!listener) {
      console.error('the port is taken');
      process.exit(1);
    }
  });
