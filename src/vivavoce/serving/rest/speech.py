"""`POST /v1/audio/speech`: a text, said by the model."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from vivavoce.serving.access import Visitor
from vivavoce.serving.rest.endpoint import Rest, Streamed, sse
from vivavoce.serving.rest.formats import MEDIA, Encoder, check_format, encoder
from vivavoce.serving.rest.jobs import Job
from vivavoce.serving.rest.replies import pieces_of
from vivavoce.serving.rest.requests import Body, Fields, Problem, problem_of

LONGEST = 4096  # characters of a text


async def speech(rest: Rest, body: Body, visitor: Visitor) -> Response:
    """The sound of a text, its bytes as they are made, or server-sent events with them."""
    fields = Fields(await body.json())
    rest.check_model(fields)
    rest.check_task("speak", "text")
    text = fields.text("input", LONGEST, required=True)
    fields.words("input")
    rest.check_voice(fields, required=True)
    name = fields.choice("response_format", tuple(MEDIA), "mp3")
    try:
        check_format(name)
    except Exception as error:
        raise problem_of(error, "response_format") or error from None
    events = fields.choice("stream_format", ("audio", "sse"), "audio") == "sse"
    if fields.number("speed", 0.25, 4.0, 1.0) != 1:
        raise fields.wrong("speed", "unsupported_value", f"{rest.core.name} speaks at its own speed: leave it out or 1")
    fields.only("instructions", (), f"{rest.core.name} takes no instructions: leave them out", "no_instructions")
    seed = fields.whole("seed", -(2**63), 2**63 - 1, 0)
    fields.done()
    model = rest.core.model

    def work(job: Job) -> Iterator[bytes]:
        tally = Tally()
        try:
            pieces = pieces_of(model, [("user", text)], "speak", seed)
            for data in sounds(job, pieces, encoder(name, model.sample_rate), tally):
                yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}) if events else data
        except Exception as error:
            raise problem_of(error, "input") or error from None
        if events:
            used = usage(len(str(text).split()), -(-tally.samples // rest.core.frame_size))
            yield sse({"type": "speech.audio.done", "usage": used})

    job, first = await rest.jobs.begin(body, work)
    if first is None:
        raise Problem(500, "server_error", "the model said nothing")
    media = "text/event-stream" if events else MEDIA[name]
    return Streamed(body, job, first, media, rest.limits.patience, events)


@dataclass
class Tally:
    """How many samples went by."""

    samples: int = 0


def sounds(job: Job, pieces: Any, out: Encoder, tally: Tally) -> Iterator[bytes]:
    """The bytes of what is said, without empty ones."""
    for piece in job.watched(pieces):
        tally.samples += len(piece.audio)
        if data := out.encode(piece.audio):
            yield data
    if data := out.finish():
        yield data


def usage(given: int, made: int) -> dict[str, Any]:
    """Tokens in and out: words of text, frames of sound."""
    return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
