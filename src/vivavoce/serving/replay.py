"""A recorded conversation once more: the user's sound goes through a model again, frame by frame, and is compared."""

import asyncio
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.audio import resample
from vivavoce.dialogue.reply_rows import HalfDuplex, duplex_from_reply
from vivavoce.dialogue.turn_policy import TurnPolicy
from vivavoce.errors import DataError
from vivavoce.serving.clock import Clock, HandClock
from vivavoce.serving.conversation import Client, Conversation, Frame
from vivavoce.serving.core import Core
from vivavoce.serving.recorded import Recording, read_recording
from vivavoce.serving.recording import Recorder
from vivavoce.serving.settings import ServerSettings

Command = Callable[[Any, int], None]


def replay(
    recording: Recording, model: Any, folder: str | os.PathLike, name: str = "", speed: float | None = None,
    rows: int = 0,
) -> Recording:
    """Have `model` (called `name`) hear what was heard in `recording`, with the same seed, prompt and commands, and
    write that to `folder` under the same name.

    speed: how many seconds of the conversation pass in one of the machine's; None: as fast as the model computes. A
    half-duplex model then computes its replies in no time of the conversation. rows: how many there are in lockstep;
    0: as many as were recorded, since the last bit of a sum may depend on that. Raises `DataError` where the model does
    not go through.
    """
    opened = recording.opened
    rows, row = rows or max(1, int(opened.get("rows", 1))), int(opened.get("row", 0))
    clock = HandClock() if speed is None else Clock(speed)
    workers = None if speed is not None else 0
    if isinstance(model, HalfDuplex):
        known: Any = HalfDuplex(model.model, _policy(opened.get("policy")) or model.policy, workers)
    else:
        known = duplex_from_reply(model, _policy(opened.get("policy")), workers)
    stem = recording.log.stem
    if Path(folder).resolve() == recording.log.parent.resolve():
        raise DataError(f"{folder}: the recording itself is there: choose another folder for its replay")

    async def run() -> None:
        # Nothing is in a hurry, nothing is late: each frame is heard as it was, when the one before has been answered.
        never = math.inf
        calm = ServerSettings(rows=rows, gap=never, catch_up=0, lead=never, outbox=never, session=never, idle=never)
        core = Core(known, name or str(opened.get("model", "")), calm, clock)
        recorder = Recorder(folder, name=lambda conversation: stem).attach(core)
        await core.start()
        try:
            if row in core.lockstep.free:
                core.lockstep.free.append(core.lockstep.free.pop(core.lockstep.free.index(row)))
            conversation = await core.open(Client("replay"), int(opened["seed"]), recording.prompt)
            frames, commands = _inputs(recording, core.sample_rate, core.frame_size)
            await _talk(core, conversation, frames, commands)
            if conversation.reason is not None:
                why = conversation.error or core.lockstep.failed or conversation.reason
                raise DataError(f"{recording.log}: the replay broke off, frame {conversation.counts.frames}: {why}")
            conversation.close()
        finally:
            await core.stop()
            recorder.close(None)

    asyncio.run(run())
    return read_recording(Path(folder) / f"{stem}.jsonl")


async def _talk(core: Core, conversation: Conversation, frames: np.ndarray, commands: dict[int, list[Command]]) -> None:
    """One frame of input after the other, each when the one before was heard, and no sooner than it was due."""
    clock, length = core.clock, core.frame_seconds
    loop, stepped = asyncio.get_running_loop(), asyncio.Event()
    done = -1

    def said(frame: Frame) -> None:
        nonlocal done
        done = frame.index
        loop.call_soon_threadsafe(stepped.set)

    conversation.observers.append(said)  # behind the recorder's: what it tells is recorded
    listening = asyncio.create_task(_listen(conversation))
    start = clock.now()
    for index, frame in enumerate(frames):
        if not isinstance(clock, HandClock):
            await asyncio.sleep(max(0.0, start + index * length - clock.now()) / clock.speed)
        for command in commands.get(index, []):
            conversation.command(command)
        stepped.clear()
        conversation.hear(frame)
        while done < index and conversation.reason is None:
            if isinstance(clock, HandClock):  # more than once while a prompt is read
                clock.advance(length)
            try:
                await asyncio.wait_for(stepped.wait(), 0.2)
            except TimeoutError:
                continue
        if conversation.reason is not None:
            break
    listening.cancel()


async def _listen(conversation: Conversation) -> None:
    async for _ in conversation.frames():
        pass


def _inputs(recording: Recording, sample_rate: int, frame_size: int) -> tuple[np.ndarray, dict[int, list[Command]]]:
    """What a model of this rate hears, [frames, frame_size], and what its row is told before which of them."""
    heard = recording.heard
    if sample_rate != recording.sample_rate:
        heard = resample(heard[None], recording.sample_rate, sample_rate)[0]
    frames = np.pad(heard, (0, -len(heard) % frame_size)).reshape(-1, frame_size)
    scale = recording.frame_seconds / (frame_size / sample_rate)
    commands: dict[int, list[Command]] = {}
    for event in recording.commands:
        index = math.floor(event["frame"] * scale + 1e-6)
        arguments, options = list(event.get("arguments") or []), dict(event.get("options") or {})
        if event["verb"] == "set_policy" and arguments:
            arguments[0] = _policy(arguments[0]) or TurnPolicy()
        commands.setdefault(index, []).append(partial(_tell, event["verb"], arguments, options))
    return frames, commands


def _tell(verb: str, arguments: list[Any], options: dict[str, Any], rows: Any, row: int) -> None:
    if hasattr(rows, verb):  # another model may know no such command
        getattr(rows, verb)(row, *arguments, **options)


def _policy(told: dict[str, Any] | None) -> TurnPolicy | None:
    """The rules of turns as a log has them; its functions are lost."""
    if told is None:
        return None
    known = {name: value for name, value in told.items() if name in TurnPolicy.__annotations__ and value is not None}
    return TurnPolicy(**{**known, **({"remembers": tuple(known["remembers"])} if "remembers" in known else {})})


@dataclass(frozen=True)
class Comparison:
    """Two recordings of the same user. `words`, `gaps`: of both; `samples`: how many of the model's were compared
    (None: rates differ); `first`: the first that differs, `frame` the model's frame that it is in (None: none does);
    `differing`: how many do; `largest`: the largest difference; `lengths`: samples of both."""

    words: tuple[str, str]
    gaps: tuple[list[float], list[float]]
    same_words: bool
    samples: int | None
    first: int | None
    frame: int | None
    differing: int
    largest: float
    lengths: tuple[int, int]
    same: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


def compare(before: Recording, after: Recording) -> Comparison:
    """What a model said in two recordings, sample by sample. The last frame of one that breaks off is not missed."""
    same_words = before.words() == after.words() and before.frame_size == after.frame_size
    words = (" ".join(t.strip() for _, t in before.words()), " ".join(t.strip() for _, t in after.words()))
    said = before.said, after.said
    lengths = len(said[0]), len(said[1])
    if before.sample_rate != after.sample_rate:
        gaps = before.gaps(), after.gaps()
        return Comparison(words, gaps, same_words, None, None, None, 0, 0.0, lengths, False)
    samples, first, differing, largest = min(lengths), None, 0, 0.0
    for start in range(0, samples, 1_000_000):
        stop = min(samples, start + 1_000_000)
        gap = np.abs(np.asarray(said[0][start:stop], np.float64) - said[1][start:stop])
        where = np.flatnonzero(gap)
        if len(where):
            first = start + int(where[0]) if first is None else first
            differing, largest = differing + len(where), max(largest, float(gap.max()))
    as_long = abs(lengths[0] - lengths[1]) <= (before.frame_size if before.closed is None else 0)
    frame = None if first is None else first // before.frame_size
    return Comparison(
        words, (before.gaps(), after.gaps()), same_words, samples, first, frame, differing, largest, lengths,
        first is None and as_long and same_words,
    )
