"""Pages of other origins that may talk here (`--origin`) may also read what HTTP answers: CORS, as browsers ask for it.

WebSockets need none of it; offers of WebRTC calls, and all of REST, do. `Access` decides who may; here it is only said.
"""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from vivavoce.serving.access import Access


class Pages(CORSMiddleware):
    """Middleware. local: whether only this machine reaches the server; then all of its own pages may."""

    def __init__(self, app: ASGIApp, access: Access, local: bool):
        super().__init__(
            app, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=("Location", "Retry-After"),
        )
        self.access, self.local = access, local

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether pages from there may."""
        return self.access.allows(origin, self.local)
