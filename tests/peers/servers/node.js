// The same small site by Node's modules http and http2: node.js KEY CERT HTTP HTTPS H2C H2 (the last four are ports).
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const http2 = require('http2');
const https = require('https');

const [key, cert, ...ports] = process.argv.slice(2);
const tls = { key: fs.readFileSync(key), cert: fs.readFileSync(cert) };
// Those that wait for /release.
let waiting = [];

function take(request, response) {
  const hash = crypto.createHash('sha256');
  let length = 0;
  request.on('data', (piece) => {
    length += piece.length;
    hash.update(piece);
  });
  request.on('end', () => {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify({
      hash: hash.digest('hex'), length, version: request.httpVersion, method: request.method, trailers: request.trailers,
      headers: request.headers,
    }));
  });
}

function site(request, response) {
  const path = request.url.split('?')[0];
  if (path === '/hello') {
    response.end('hello');
  } else if (path === '/large') {
    let left = 10;
    const more = () => {
      while (left > 0) {
        left -= 1;
        if (!response.write(Buffer.alloc(1000000, left))) {
          response.once('drain', more);
          return;
        }
      }
      response.end();
    };
    more();
  } else if (path === '/wait') {
    response.write('first\n');
    waiting.push(() => response.end('last\n'));
  } else if (path === '/release') {
    const count = waiting.length;
    waiting.forEach((go) => go());
    waiting = [];
    response.end(String(count));
  } else if (path === '/hints') {
    const links = { link: '</style.css>; rel=preload; as=style' };
    if (request.httpVersionMajor === 2) {
      response.stream.additionalHeaders({ ':status': 103, ...links });
    } else {
      response.writeEarlyHints(links);
    }
    response.end('with hints');
  } else if (path === '/trailers') {
    response.setHeader('trailer', 'x-sum');
    response.write('hello');
    response.addTrailers({ 'x-sum': '5d41402a' });
    response.end();
  } else if (path === '/refuse') {
    response.statusCode = 403;
    response.end('no');
  } else {
    take(request, response);
  }
}

for (const [n, server] of [http.createServer(), https.createServer(tls), http2.createServer(), http2.createSecureServer({ ...tls, allowHTTP1: true })].entries()) {
  server.on('request', site);
  server.listen(Number(ports[n]), '127.0.0.1');
}
