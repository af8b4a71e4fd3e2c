// A service that registers by npm's `eureka-js-client`, as users have it: it registers, sends heartbeats, looks up, and leaves by SIGTERM.
//
// usage: node by_eureka_js_client.js HOST:PORT NAME ID PORT

const http = require('node:http');
const { Eureka } = require('eureka-js-client');

const [registry, name, id, port] = process.argv.slice(2);
const [host, registryPort] = registry.split(':');
const client = new Eureka({
  instance: {
    app: name, instanceId: id, hostName: 'localhost', ipAddr: '127.0.0.1', port: { $: Number(port), '@enabled': true }, vipAddress: name,
    statusPageUrl: `http://127.0.0.1:${port}/info`, leaseInfo: { renewalIntervalInSecs: 1, durationInSecs: 3 },
    dataCenterInfo: { '@class': 'com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo', name: 'MyOwn' }, metadata: { language: 'node' },
  },
  eureka: { host, port: Number(registryPort), servicePath: '/eureka/apps/', heartbeatInterval: 500, registryFetchInterval: 500, maxRetries: 1000, requestRetryDelay: 100 },
});
for (const level of ['warn', 'info', 'debug', 'error']) client.logger[level] = (...words) => level === 'debug' || console.log(`${level}:`, ...words);

http.createServer((_, response) => response.end(id)).listen(Number(port), '127.0.0.1', () => {
  client.start((error) => {
    if (error) throw error;
    console.log('registered');
    let seen;
    setInterval(() => {
      const found = client.getInstancesByAppId(name);
      if (found.length !== seen) console.log('passing:', (seen = found.length));
    }, 100);
    process.on('SIGTERM', () => {
      client.stop((error) => {
        console.log(error || 'deregistered');
        process.exit(error ? 1 : 0);
      });
    });
  });
});
