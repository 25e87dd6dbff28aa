"""OpenAI's REST: speech, transcriptions, translations, chat with sound, models; and what this model can do."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from vivavoce.serving.access import Denied
from vivavoce.serving.app import Server, problem
from vivavoce.serving.capabilities import capabilities
from vivavoce.serving.rest.chat import completions
from vivavoce.serving.rest.endpoint import Endpoint, Rest, Run
from vivavoce.serving.rest.speech import speech
from vivavoce.serving.rest.transcription import transcription, translation

FORM = 64 * 1024  # bytes of a form beside its file


def routes(server: Server) -> list[BaseRoute]:
    """The paths of REST."""
    rest = Rest(server)
    body = server.access.limits.body

    def post(path: str, run: Run, limit: int) -> Route:
        return Route(path, Endpoint(rest, run, limit), methods=["POST"])

    return [
        post("/v1/audio/speech", speech, min(rest.limits.text, body)),
        post("/v1/audio/transcriptions", transcription, body + FORM),
        post("/v1/audio/translations", translation, body + FORM),
        post("/v1/chat/completions", completions, body),
        Route("/v1/models", Shown(rest, models).answer, methods=["GET"]),
        Route("/v1/models/{name:path}", Shown(rest, model).answer, methods=["GET"]),
        Route("/v1/capabilities", Shown(rest, abilities).answer, methods=["GET"]),
    ]


class Shown:
    """Plain data about the model, for every key that opens anything."""

    def __init__(self, rest: Rest, look: Any):
        self.rest, self.look = rest, look

    async def answer(self, request: Request) -> Response:
        """Let in, and show."""
        try:
            self.rest.server.visit(request, "rest")
        except Denied as denied:
            if denied.code != "scope_missing":
                raise
        return await asyncio.to_thread(self.look, self.rest, request)


def card(rest: Rest) -> dict[str, Any]:
    """The model as OpenAI lists it."""
    return {"id": rest.core.name, "object": "model", "created": rest.created, "owned_by": "vivavoce"}


def models(rest: Rest, request: Request) -> Response:
    """All models: the one that is served."""
    return JSONResponse({"object": "list", "data": [card(rest)]})


def model(rest: Rest, request: Request) -> Response:
    """One model."""
    name = request.path_params["name"]
    if name not in rest.names:
        return problem(404, "model_not_found", f"there is no model '{name:.100}' here: there is '{rest.core.name}'")
    return JSONResponse(card(rest))


def abilities(rest: Rest, request: Request) -> Response:
    """What each model can do."""
    found = capabilities(rest.core.model, rest.core.name, rest.core.frame_size)
    limits = rest.limits
    most = {
        "body_bytes": rest.server.access.limits.body, "input_seconds": limits.seconds, "answer_seconds": limits.answer,
        "input_characters": 4096, "kept_seconds": limits.keep,
    }
    return JSONResponse({"object": "list", "data": [{**found, "limits": most}]})
