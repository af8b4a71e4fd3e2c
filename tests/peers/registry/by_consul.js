// A service that registers by npm's `consul`, as users have it: with a check that the registry makes, a watch, and an orderly end by SIGTERM.
//
// usage: node by_consul.js HOST:PORT NAME ID PORT

const http = require('node:http');
const Consul = require('consul');

const [registry, name, id, port] = process.argv.slice(2);
const [host, registryPort] = registry.split(':');
const client = new Consul({ host, port: Number(registryPort) });

async function main() {
  await new Promise((listening) => http.createServer((_, response) => response.end(id)).listen(Number(port), '127.0.0.1', listening));
  await client.agent.service.register({
    name, id, address: '127.0.0.1', port: Number(port), tags: ['v1'], meta: { language: 'node' },
    check: { http: `http://127.0.0.1:${port}/health`, interval: '1s', timeout: '1s' },
  });
  console.log('registered');
  console.log('of the agent:', (await client.agent.service.list())[id].Port);
  let seen;
  const watch = client.watch({ method: client.health.service, options: { service: name, passing: true }, backoffFactor: 100 });
  watch.on('change', (entries) => {
    if (entries.length !== seen) console.log('passing:', (seen = entries.length));
  });
  watch.on('error', (error) => console.log('query:', error.message));
  process.on('SIGTERM', async () => {
    watch.end();
    await client.agent.service.deregister(id);
    console.log('deregistered');
    process.exit(0);
  });
}

main().catch((error) => {
  console.log(error);
  process.exit(1);
});
