// A directory of users over HTTP, for tests. Arguments: PORT h1|h2|h2c [CERTIFICATE KEY [CLIENT-CA]].
// GET /v1/KEY gives {"version": …, "values": […]}; GET /stats counts sessions and the most questions at once.
'use strict';
const [port, mode, certificate, key, authority] = process.argv.slice(2);
const fs = require('fs');
const http2 = require('http2');

let sessions = 0, open = 0, peak = 0;

function answer(request, response) {
    const end = (status, value, headers) => {
        open--;
        response.writeHead(status, { 'content-type': 'application/json', ...headers });
        response.end(value === undefined ? undefined : JSON.stringify(value));
    };
    const found = (...values) => end(200, { version: request.httpVersion, values });
    peak = request.url === '/stats' ? peak : Math.max(peak, open + 1);
    open++;
    if (request.url === '/stats') return found(sessions, peak);
    const name = decodeURIComponent(request.url.replace(/^\/v1\//, ''));
    const session = request.stream && request.stream.session;
    switch (name) {
    case 'version': return found(request.httpVersion);
    case 'many': return found('a', 'b', null, 3);
    case 'none': return found();
    case 'absent': return end(404, {});
    case 'empty': return end(204);
    case 'busy': return end(503, {});
    case 'locked':
        return request.headers.authorization === 'Bearer sesame' ? found('open') : end(401, {});
    case 'certificate': return found(request.socket.getPeerCertificate().subject.CN);
    case 'headers': return end(200, { values: ['x'] }, { 'x-long': 'x'.repeat(200000) });
    case 'huge': return found('x'.repeat(3000000));
    case 'slow': return setTimeout(() => found('slow'), 20);
    case 'hang': return undefined;
    case 'goaway': session.goaway(0); return found('goaway');
    case 'reset': return request.stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
    case 'cut':
        response.writeHead(200, { 'content-length': 1000 });
        response.write('{"values":["');
        return setTimeout(() => (session ? session.destroy() : request.socket.destroy()), 20);
    default: return found(name);
    }
}

const options = { maxHeaderSize: 65536 };
if (certificate) {
    Object.assign(options, { cert: fs.readFileSync(certificate), key: fs.readFileSync(key), allowHTTP1: true });
}
if (authority) Object.assign(options, { ca: fs.readFileSync(authority), requestCert: true, rejectUnauthorized: true });
if (mode !== 'h1') options.settings = { maxConcurrentStreams: 4 };
const server = mode === 'h1'
    ? (certificate ? require('https') : require('http')).createServer(options, answer)
    : (certificate ? http2.createSecureServer : http2.createServer)(options, answer);
server.on(certificate ? 'secureConnection' : 'connection', () => { sessions++; });
server.on('sessionError', () => {});
server.on('tlsClientError', () => {});
server.listen(Number(port), '127.0.0.1');
