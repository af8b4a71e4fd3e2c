// A server of socket.io that tells which one it is, keeps count, and has clients come back to it by a cookie.
// usage: node socket_io_server.js PORT NAME
'use strict';
const http = require('http');
const { Server } = require('socket.io');

const [port, name] = [Number(process.argv[2]), process.argv[3]];
const server = http.createServer((request, response) => response.end(name));
const io = new Server(server, { maxHttpBufferSize: 4e6, pingInterval: 1000, pingTimeout: 3000 });

// The answer to the handshake sets a cookie, and isobar has a route for each value of it.
io.engine.on('initial_headers', (headers) => {
  headers['set-cookie'] = `node=${name}; Path=/; HttpOnly`;
});
io.on('connection', (socket) => {
  let seen = 0;
  socket.on('tell', (answer) => answer({ name, transport: socket.conn.transport.name, address: socket.handshake.headers['x-forwarded-for'] }));
  // Numbers come in the order in which they were sent, or the sum says so.
  socket.on('count', (n) => { if (n === seen) seen += 1; });
  socket.on('counted', (answer) => answer(seen));
  socket.on('echo', (data, answer) => answer(data));
  socket.on('burst', (many) => { for (let n = 0; n < many; n += 1) socket.emit('number', n); });
});
server.listen(port, '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
