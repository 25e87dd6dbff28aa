"""The page that people talk from: files of the package, nothing from elsewhere, with headers that keep it so.

It speaks OpenAI Live (`vivavoce.serving.dialects.live`) with the server that it came from. There is no build step:
what is in `serving/page` is what the browser runs.
"""

import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from vivavoce.serving.app import Server

FOLDER = Path(__file__).resolve().parents[1] / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
HOST = re.compile(r"[A-Za-z0-9.\-]+(:\d+)?|\[[0-9A-Fa-f:.]+\](:\d+)?")
SAFE = {
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
NOT_FOUND = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Not here</title>
<h1>There is nothing at this address</h1><p>The page to talk from is <a href="{home}">here</a>.</p>"""


def routes(server: Server) -> list[BaseRoute]:
    """`/` and `/page/NAME`. The files are read once."""
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:24]}"' for name, data in files.items()}

    def answer(request: Request, name: str) -> Response:
        headers = {**SAFE, "Content-Security-Policy": policy(request.headers.get("host", ""))}
        if name not in files:
            home = "../" * (1 + request.path_params.get("name", "").count("/"))
            return HTMLResponse(NOT_FOUND.format(home=home), 404, headers)
        # no-cache: always asked for again, so that no file of one version meets files of another.
        headers |= {"ETag": tags[name], "Cache-Control": "no-cache"}
        if tags[name] in re.findall(r'"[^"]*"', request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(files[name], headers=headers, media_type=KINDS[Path(name).suffix])

    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        return answer(request, "" if name == "index.html" else name)

    return [Route("/", index), Route("/page/{name:path}", file)]


def policy(host: str) -> str:
    """The content security policy: scripts, worklets, styles and connections of this server alone.

    `host` as the browser sent it: not every browser takes 'self' to mean WebSockets too.
    """
    sockets = f" ws://{host} wss://{host}" if HOST.fullmatch(host) else ""
    return (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"media-src 'self' blob:; connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
