"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: a recording -> its words."""

import json
from collections.abc import Iterator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.responses import Response

from vivavoce.audio import Audio
from vivavoce.audio.voice_activity import speech_segments
from vivavoce.serving.access import Visitor
from vivavoce.serving.capabilities import languages_of
from vivavoce.serving.rest.endpoint import DONE, Rest, Streamed, sse
from vivavoce.serving.rest.jobs import Job
from vivavoce.serving.rest.replies import hears_itself, pieces_of
from vivavoce.serving.rest.requests import Body, Fields, Problem, problem_of
from vivavoce.serving.rest.transcripts import lines_of, srt, verbose, vtt, words_of
from vivavoce.serving.rest.uploads import decode

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("word", "segment")
UNKNOWN_LANGUAGE = "und"  # ISO 639-3: undetermined


async def transcription(rest: Rest, body: Body, visitor: Visitor) -> Response:
    """The words of a recording."""
    return await _written("transcribe", rest, body)


async def translation(rest: Rest, body: Body, visitor: Visitor) -> Response:
    """The words of a recording, in English."""
    return await _written("translate", rest, body)


async def _written(task: str, rest: Rest, body: Body) -> Response:
    fields = Fields(await body.form())
    rest.check_model(fields)
    rest.check_task(task, "audio")
    name, data = await _file(fields)
    language = _language(fields, rest)
    wanted = _format(fields)
    granularities = fields.strings("timestamp_granularities") or ["segment"]
    if strange := [each for each in granularities if each not in GRANULARITIES]:
        raise fields.wrong("timestamp_granularities", "unsupported_value", f"'{strange[0]:.40}': word or segment")
    if "word" in granularities and wanted != "verbose_json":
        raise fields.wrong("timestamp_granularities", "unsupported_value", "word times are in verbose_json only")
    stream = fields.yes("stream")
    if stream and wanted not in ("json", "text"):
        raise fields.wrong("response_format", "unsupported_value", f"'{wanted}' does not come as a stream: say json")
    _refuse_others(fields, rest)
    core = rest.core

    def heard(job: Job, recording: Audio) -> Iterator[tuple[float, str]]:
        answers_too = task == "transcribe" and not hears_itself(core.model)  # its own words are its answer's
        for piece in job.watched(pieces_of(core.model, [("user", recording)], task)):
            text = "" if answers_too else piece.text
            if task == "transcribe":
                text = piece.user_text or text
            if text:
                yield piece.seconds + recording.duration, text

    def read() -> Audio:
        return decode(data, name, core.model.sample_rate, rest.limits.seconds)

    def words(job: Job) -> Iterator[bytes]:
        try:
            recording = read()
            text = ""
            for _, word in heard(job, recording):
                delta = f" {word}" if text else word
                text += delta
                yield sse({"type": "transcript.text.delta", "delta": delta})
        except Exception as error:
            raise problem_of(error, "file") or error from None
        used = usage(-(-len(recording) // core.frame_size), len(text.split()))
        yield sse({"type": "transcript.text.done", "text": text, "usage": used})
        yield DONE

    def whole(job: Job) -> tuple[str, str]:
        try:
            recording = read()
            moments = list(heard(job, recording))
            if wanted in ("json", "text"):
                text = " ".join(word for _, word in moments)
                if wanted == "text":
                    return "text/plain", text + "\n"
                seconds = {"type": "duration", "seconds": round(recording.duration, 3)}
                return "application/json", json.dumps({"text": text, "usage": seconds})
            return timed(moments, recording)
        except Exception as error:
            raise problem_of(error, "file") or error from None

    def timed(moments: list[tuple[float, str]], recording: Audio) -> tuple[str, str]:
        if "word" in granularities and any(len(text.split()) > 1 for _, text in moments):
            why = f"{core.name} does not say when each word was said: ask for segments"
            raise Problem(400, "no_word_times", why, "timestamp_granularities")
        duration = round(recording.duration, 3)
        found = words_of(moments, speech_segments(recording) if moments else [], duration)
        if wanted == "verbose_json":
            what = "transcribe" if task == "transcribe" else "translate"
            return "application/json", json.dumps(verbose(what, found, duration, language, granularities))
        return ("text/plain", srt(lines_of(found))) if wanted == "srt" else ("text/vtt", vtt(lines_of(found)))

    if stream:
        job, first = await rest.jobs.begin(body, words)
        return Streamed(body, job, first, "text/event-stream", rest.limits.patience, events=True)
    media, text = await rest.jobs.whole(body, whole)
    return Response(text, media_type=media)


async def _file(fields: Fields) -> tuple[str, bytes]:
    upload: Any = fields.get("file")
    if not isinstance(upload, UploadFile):
        if upload is not None:
            raise fields.wrong("file", "invalid_type", "a file is expected: give the part a filename")
        raise fields.missing("file")
    try:
        return (upload.filename or "file")[:80], await upload.read()
    finally:
        await upload.close()


def _format(fields: Fields) -> str:
    if fields.get("response_format") == "diarized_json":
        raise fields.wrong("response_format", "no_task_diarize", "nobody is told apart here: say json or verbose_json")
    return fields.choice("response_format", FORMATS, "json")


def _language(fields: Fields, rest: Rest) -> str:
    """The language that is named, or the only one of the model's; a hint that the model cannot follow is refused."""
    known = languages_of(rest.core.model)
    asked = [each for each in (fields.text("language", 40), *fields.strings("languages")) if each]
    for each in asked:
        if known and each.lower().split("-")[0] not in known:
            why = f"{rest.core.name} does not know '{each:.40}': it knows {', '.join(known)}"
            raise fields.wrong("language", "unsupported_language", why)
    if asked:
        return asked[0].lower()
    return known[0] if known and len(known) == 1 else UNKNOWN_LANGUAGE


def _refuse_others(fields: Fields, rest: Rest) -> None:
    own = rest.core.name
    if fields.number("temperature", 0, 1, 0) != 0:
        raise fields.wrong("temperature", "unsupported_value", f"{own} chooses as its recipe says: leave it out or 0")
    fields.only("prompt", (), f"{own} takes no hints: leave it out", "no_instructions")
    fields.only("keywords", (), f"{own} takes no hints: leave it out", "no_instructions")
    fields.only("include", (), f"{own} gives no log-probabilities: leave it out", "no_logprobs")
    fields.only("chunking_strategy", ("auto",), "a recording is heard as one stream: leave it out or 'auto'")
    for each in ("known_speaker_names", "known_speaker_references"):
        fields.only(each, (), "nobody is told apart here: leave it out", "no_task_diarize")
    fields.done()


def usage(given: int, made: int) -> dict[str, Any]:
    """Tokens in and out: frames of sound, words of text."""
    return {
        "type": "tokens", "input_tokens": given, "output_tokens": made, "total_tokens": given + made,
        "input_token_details": {"audio_tokens": given, "text_tokens": 0},
    }
