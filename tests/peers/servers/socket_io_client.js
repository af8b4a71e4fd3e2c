// Clients of socket.io: each connects by the transports that are asked for, and what it saw is printed as JSON.
// usage: node socket_io_client.js URL polling|websocket|both KEEP_COOKIES COUNT
'use strict';
const crypto = require('crypto');
const { io } = require('socket.io-client');

const [url, how, cookies, count] = [process.argv[2], process.argv[3], process.argv[4] === 'true', Number(process.argv[5])];
const transports = how === 'both' ? ['polling', 'websocket'] : [how];
const ask = (socket, ...what) => socket.timeout(20000).emitWithAck(...what);
const digest = (data) => crypto.createHash('sha256').update(data).digest('hex');

async function one() {
  const socket = io(url, { transports, forceNew: true, withCredentials: cookies, reconnection: false, rejectUnauthorized: true });
  let upgraded = how !== 'both';
  let drops = 0;
  socket.on('disconnect', () => { drops += 1; });
  socket.io.engine.once('upgrade', () => { upgraded = true; });
  await new Promise((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('connect_error', (error) => reject(new Error(`${error.message}: ${JSON.stringify(error.context && error.context.status)}`)));
  });
  const first = await ask(socket, 'tell');
  for (let n = 0; n < 200; n += 1) socket.emit('count', n);
  const counted = await ask(socket, 'counted');
  const numbers = [];
  socket.on('number', (n) => numbers.push(n));
  socket.emit('burst', 200);
  const sent = crypto.randomBytes(1500000);
  const back = await ask(socket, 'echo', sent);
  // Longer than the server's pings are apart and late: they have to get through, both ways.
  const end = Date.now() + 10000;
  while (!upgraded && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 50));
  await new Promise((resolve) => setTimeout(resolve, 4500));
  const last = await ask(socket, 'tell');
  const result = {
    name: first.name, last: last.name, transport: last.transport, address: last.address, counted, drops, upgraded,
    inOrder: numbers.length === 200 && numbers.every((n, at) => n === at), same: digest(sent) === digest(back),
  };
  socket.disconnect();
  return result;
}

Promise.allSettled(Array.from({ length: count }, one)).then((all) => {
  console.log(JSON.stringify(all.map((it) => (it.status === 'fulfilled' ? it.value : { error: String(it.reason) }))));
  process.exit(0);
});
