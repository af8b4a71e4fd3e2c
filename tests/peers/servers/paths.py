"""What a program under gunicorn (wsgi), uvicorn (asgi) and Werkzeug (routed, or by itself: paths.py PORT) believes that it is asked for."""

import sys


def read(host, path):
    # As Django does it.
    name = host.rsplit(":", 1)[0].lower().removesuffix(".")
    if name == "admin.test" or name.endswith(".adm.test"):
        return "PROTECTED host"
    if path == "/admin" or path.startswith("/admin/"):
        return "PROTECTED admin"
    return "PROTECTED ab" if path == "/a/b" else "open"


def wsgi(environ, start_response):
    body = read(environ.get("HTTP_HOST", ""), environ["PATH_INFO"]).encode()
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    body = read(host, scope["path"]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


def routed():
    from werkzeug.routing import Map, Rule
    from werkzeug.wrappers import Request, Response
    from werkzeug.exceptions import HTTPException

    rules = Map([
        Rule("/admin", endpoint="PROTECTED admin"), Rule("/admin/<path:rest>", endpoint="PROTECTED admin"),
        Rule("/a/b", endpoint="PROTECTED ab"), Rule("/", endpoint="open"), Rule("/<path:rest>", endpoint="open"),
    ])

    @Request.application
    def site(request):
        try:
            endpoint, _ = rules.bind_to_environ(request.environ).match()
        except HTTPException as error:
            return error
        told = read(request.host, "")
        return Response(endpoint if told == "open" else told)

    return site


if __name__ == "__main__":
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", int(sys.argv[1]), routed(), threaded=True)
