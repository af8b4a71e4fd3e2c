"""moto's S3 behind a check of signatures, those of presigned addresses too, which moto itself passes by.

A signature (SigV4) is over method, path, query, host and others of the headers: whatever is changed on the way makes it wrong.
usage: s3.py PORT ACCESS_KEY SECRET
"""

import hashlib
import hmac
import sys
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import werkzeug.serving
from moto.server import DomainDispatcherApplication, create_backend_app

PORT, ACCESS, SECRET = int(sys.argv[1]), sys.argv[2], sys.argv[3]
REFUSED = b"<Error><Code>SignatureDoesNotMatch</Code><Message>not what was signed</Message></Error>"


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def header(environ, name):
    key = name.upper().replace("-", "_")
    return " ".join(environ.get(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", "").split())


def expected(environ, path, query, credential, names, date, payload):
    """The signature that a client with the secret makes of this request."""
    scope = credential.split("/", 1)[1]
    pairs = "&".join(sorted(f"{quote(key, safe='-_.~')}={quote(value, safe='-_.~')}" for key, value in query))
    # S3 encodes the path once and leaves its slashes and dots as they are.
    request = "\n".join(
        [
            environ["REQUEST_METHOD"],
            quote(unquote_to_bytes(path), safe="/-_.~"),
            pairs,
            *(f"{name}:{header(environ, name)}" for name in names),
            "",
            ";".join(names),
            payload,
        ]
    )
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = mac(key, part)
    return mac(key, "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(request.encode()).hexdigest()])).hex()


def is_good(environ):
    path, _, query = environ["RAW_URI"].partition("?")
    query = parse_qsl(query, keep_blank_values=True)
    asked = dict(query)
    if signature := asked.get("X-Amz-Signature"):
        query = [pair for pair in query if pair[0] != "X-Amz-Signature"]
        credential, names, date = (asked[f"X-Amz-{name}"] for name in ("Credential", "SignedHeaders", "Date"))
        payload = "UNSIGNED-PAYLOAD"
    else:
        algorithm, _, said = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if algorithm != "AWS4-HMAC-SHA256":
            return False
        said = dict(part.strip().split("=", 1) for part in said.split(","))
        credential, names, signature = said["Credential"], said["SignedHeaders"], said["Signature"]
        date, payload = header(environ, "x-amz-date"), header(environ, "x-amz-content-sha256")
    names = names.split(";")
    return (
        "host" in names
        and credential.split("/")[0] == ACCESS
        and hmac.compare_digest(signature, expected(environ, path, query, credential, names, date, payload))
    )


def application(environ, start_response):
    if is_good(environ):
        return MOTO(environ, start_response)
    # The rest of the request is not read.
    start_response("403 Forbidden", [("content-type", "application/xml"), ("content-length", str(len(REFUSED))), ("connection", "close")])
    return [REFUSED]


MOTO = DomainDispatcherApplication(create_backend_app)
werkzeug.serving.WSGIRequestHandler.protocol_version = "HTTP/1.1"
werkzeug.serving.run_simple("127.0.0.1", PORT, application, threaded=True)
