"""What was heard, and when: words, subtitles (SubRip, WebVTT) and OpenAI's verbose form."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LAG = 0.08  # seconds: a word is not written down sooner after it began
LONGEST_WORD, LONGEST_LINE, MOST_CHARACTERS = 1.0, 7.0, 84  # seconds; seconds and characters of a subtitle
PAUSE = 0.6  # seconds of silence that end a subtitle


@dataclass(frozen=True)
class Word:
    """A piece of text from `start` to `end`, seconds of the recording."""

    text: str
    start: float
    end: float


def words_of(
    moments: Sequence[tuple[float, str]], speech: Sequence[tuple[float, float]], duration: float
) -> list[Word]:
    """Pieces of text with their times, from the `moments` (seconds, text) at which the model wrote them down.

    It writes a word once it has heard it whole: the moment is the end, or where that is sooner the end of the `speech`
    [(start, end)] before it. The begin is that of the speech, or the end of the word before; a word lasts 1 s at most.
    """
    found: list[Word] = []
    for moment, text in moments:
        moment = min(max(moment, 0.0), duration)
        before = found[-1].end if found else 0.0
        heard = [each for each in speech if each[0] + LAG <= moment]
        start, end = max(before, moment - LONGEST_WORD), moment
        if heard and heard[-1][1] > before:
            start, end = max(start, heard[-1][0]), min(moment, heard[-1][1])
        found.append(Word(text, round(start, 3), round(max(start, end), 3)))
    return found


def lines_of(words: Sequence[Word]) -> list[Word]:
    """Words joined to lines as subtitles have them: until a pause, or until a line is full."""
    lines: list[Word] = []
    for word in words:
        last = lines[-1] if lines else None
        if (
            last is not None
            and word.start - last.end < PAUSE
            and word.end - last.start <= LONGEST_LINE
            and len(last.text) + 1 + len(word.text) <= MOST_CHARACTERS
        ):
            lines[-1] = Word(f"{last.text} {word.text}", last.start, word.end)
        else:
            lines.append(word)
    return lines


def srt(lines: Sequence[Word]) -> str:
    """SubRip."""
    return "".join(
        f"{number}\n{_clock(line.start, ',')} --> {_clock(line.end, ',')}\n{line.text}\n\n"
        for number, line in enumerate(lines, 1)
    )


def vtt(lines: Sequence[Word]) -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(line.start, '.')} --> {_clock(line.end, '.')}\n{_escaped(line.text)}\n\n" for line in lines
    )


def verbose(
    task: str, words: Sequence[Word], duration: float, language: str, granularities: Sequence[str]
) -> dict[str, Any]:
    """OpenAI's `verbose_json`. The log-probabilities and tokens of its segments are not known: they are 0 and none."""
    lines = lines_of(words)
    found: dict[str, Any] = {
        "task": task, "language": language, "duration": duration, "text": " ".join(word.text for word in words),
    }
    if "segment" in granularities:
        found["segments"] = [
            {
                "id": number, "seek": 0, "start": line.start, "end": line.end, "text": line.text, "tokens": [],
                "temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": _ratio(line.text), "no_speech_prob": 0.0,
            }
            for number, line in enumerate(lines)
        ]
    if "word" in granularities:
        found["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in words]
    return {**found, "usage": {"type": "duration", "seconds": duration}}


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _ratio(text: str) -> float:
    data = text.encode()
    return round(len(data) / len(zlib.compress(data)), 3) if data else 0.0
