// What a program for Node believes that it is asked for: paths.js URL FILES ROOT. Behind the first port it asks WHATWG's URL, behind
// the second it does what Express's static files do: decode, then normalize, and look for a file in ROOT.
'use strict';
const fs = require('fs');
const http = require('http');
const path = require('path');

const [byUrl, byFile, root] = process.argv.slice(2);

function answer(response, text) {
  response.writeHead(200, { 'content-type': 'text/plain', 'content-length': text.length });
  response.end(text);
}

function fail(response, status) {
  response.writeHead(status, { 'content-length': 0 });
  response.end();
}

http.createServer((request, response) => {
  let url;
  let read;
  try {
    url = new URL(request.url, `http://${request.headers.host}`);
    read = decodeURIComponent(url.pathname);
  } catch {
    fail(response, 400);
    return;
  }
  if (url.hostname === 'admin.test' || url.hostname.endsWith('.adm.test')) {
    answer(response, 'PROTECTED host');
  } else if (read === '/admin' || read.startsWith('/admin/')) {
    answer(response, 'PROTECTED admin');
  } else {
    answer(response, read === '/a/b' ? 'PROTECTED ab' : 'open');
  }
}).listen(byUrl, '127.0.0.1');

http.createServer((request, response) => {
  let read;
  try {
    read = decodeURIComponent(request.url.split('?')[0]);
  } catch {
    fail(response, 400);
    return;
  }
  if (read.includes('\0')) {
    fail(response, 400);
    return;
  }
  let file = path.join(root, path.normalize(`./${read}`));
  if (!file.startsWith(root)) {
    fail(response, 403);
    return;
  }
  try {
    if (fs.statSync(file).isDirectory()) {
      file = path.join(file, 'index.html');
    }
    answer(response, fs.readFileSync(file, 'latin1'));
  } catch {
    fail(response, 404);
  }
}).listen(byFile, '127.0.0.1');
