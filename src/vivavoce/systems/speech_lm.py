"""`SpeechLM`: a full-duplex system with its verbs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vivavoce.audio import Audio
from vivavoce.dialogue import DuplexOutput, DuplexRows, DuplexSession, Piece, Reply, reply_pieces, whole_reply
from vivavoce.dialogue.duplex import whole
from vivavoce.dialogue.turns import LOUD, check_limits
from vivavoce.dialogue.turns import joined as together
from vivavoce.errors import RequestError
from vivavoce.systems.codec_model import mono_samples, resynthesize
from vivavoce.systems.duplex_system import DuplexSystem
from vivavoce.systems.token_lm import TokenLM

LISTENS_FIRST = 6  # frames of silence before forced words: no conversation begins with the model's voice
SPEAKS_ON = 22  # frames after the last forced word, for its sound


@dataclass(frozen=True)
class Features:
    """Frames [T, D] float32 at `frame_rate` Hz."""

    values: np.ndarray
    frame_rate: float


class SpeechLM(TokenLM):
    """A full-duplex speech language model and its verbs. `verbs` says which are native and which derived.

    In `loglik`, a stream that an item leaves out, or that ends before the others, is silent or says nothing.
    """

    system: DuplexSystem

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived."""
        native = dict.fromkeys(("duplex", "fill", "loglik", "features", "resynth"), "native")
        return {**native, "reply": "derived"}

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task of `reply` -> what it is given: it answers and writes down audio, and speaks text where the recipe has
        a task `speak` that is given the text."""
        found: dict[str, tuple[str, ...]] = {"answer": ("audio",)}
        if self.system.interaction.transcribes is not None:
            found["transcribe"] = ("audio",)
        if self.system.interaction.writes in getattr(self.system.tasks.get("speak"), "given", ()):
            found["speak"] = ("text",)
        return found

    def duplex(self, seed: int = 0, prompt: Mapping[str, Any] | None = None) -> DuplexSession:
        """One full-duplex conversation; `prompt`: what was before it, as `DuplexRows.reset` takes it."""
        return DuplexSession(self.system, seed, prompt)

    def duplex_rows(self, rows: int) -> DuplexRows:
        """Many full-duplex conversations in lockstep."""
        return DuplexRows(self.system, rows)

    def reply(self, turns: Any, stream: bool = False, task: str = "answer", seed: int = 0, **limits: Any) -> Any:
        """Answer the last of `turns` [(role, Audio)]; a list of such lists gives a list of replies.

        task: "answer" (the model answers), "transcribe" (`.text` is the user's words), "speak" (one turn with a text:
        the model says its words, in a conversation in which it hears silence; `.audio` begins with the first).
        stream=True gives an iterator of `Piece`s; leaving the loop cancels. Earlier user turns are heard first, each
        with the model's own answer to it. `limits` in seconds: how long the answer is waited for (`wait`), how long it
        must be `quiet` to be over, and the longest (`limit`). Raises `AudioError` for unusable audio, `RequestError`
        for turns that cannot be answered, and for a word that the model cannot say.
        """
        if not isinstance(turns, list | tuple):
            raise RequestError(f"reply: turns are a list, [('user', audio)], not {turns!r:.60}")
        check_limits(limits)
        if turns and isinstance(turns[0], list):
            if stream:
                raise RequestError("reply: stream=True takes one conversation at a time")
            return [self.reply(one, task=task, seed=seed, **limits) for one in turns]
        if task not in self.tasks:
            raise RequestError(f"reply: task '{task}': {self.name} has {', '.join(self.tasks)}")
        if strange := [turn for turn in turns if not isinstance(turn, tuple) or len(turn) != 2]:
            raise RequestError(f"reply: a turn is ('user', audio), not {strange[0]!r:.60}")
        if task == "speak":
            pieces = self._speak(turns, seed, **limits)
            return pieces if stream else joined(list(pieces), self.sample_rate)
        audio = [self._heard(role, value) for role, value in turns]
        if not audio:
            raise RequestError("reply: no turns; give [('user', audio)]")
        session = self.duplex(seed)
        for earlier in audio[:-1]:
            whole_reply(session, earlier, **limits)
        if stream:
            return self._stream(session, audio[-1], limits)
        done = whole_reply(session, audio[-1], **limits)
        if task == "transcribe":
            return Reply(done.user_text, Audio(np.zeros((1, 0), np.float32), self.sample_rate), [], done.user_text)
        return done

    @staticmethod
    def _stream(session: DuplexSession, samples: np.ndarray, limits: Mapping[str, float]) -> Iterator[Piece]:
        for piece, _ in reply_pieces(session, samples, **limits):
            yield piece

    def _speak(
        self, turns: Any, seed: int, quiet: float = 0.8, wait: float = 0.0, limit: float = math.inf
    ) -> Iterator[Piece]:
        """Pieces of a text that is said; there is nothing to `wait` for. The words are checked before the first."""
        if len(turns) != 1 or turns[0][0] != "user" or not isinstance(turns[0][1], str) or not turns[0][1].split():
            raise RequestError("reply: task 'speak' is given one turn with words: [('user', 'three plus four')]")
        session = self.duplex(seed)
        self._give_text(session, turns[0][1], None)
        return self._said(session, quiet, limit)

    @staticmethod
    def _said(session: DuplexSession, quiet: float, limit: float) -> Iterator[Piece]:
        """What the forced words of a session that begins sound like, from the first one on; seconds count from it."""
        frame = session.frame_size / session.sample_rate
        said, silent = 0, 0.0
        while session.saying and said * frame < limit - 1e-6:
            out = session.step(np.zeros(session.frame_size, dtype=np.float32))
            if not said and not out.text:
                continue
            sounds = bool(out.text) or float(np.sqrt(np.mean(np.square(out.audio)))) > LOUD
            yield Piece(said * frame, out.text, out.audio)
            said, silent = said + 1, 0.0 if sounds else silent + frame
            if session.saying <= SPEAKS_ON and silent >= quiet - 1e-6:
                return

    def fill(self, task: str, given: Any = None, length: Any = None, seed: Any = 0, limit: int = 10_000) -> Any:
        """Fill the streams of a task of the recipe: of mini's, "duplex" and "transcribe" are given {"user": Audio},
        "speak" {"text": words or ids}. A list of such mappings gives a list of results; `limit`: frames at most.

        Words (a string) are said when the model finds each due; ids stand at their frames (0: nothing). A task whose
        text is given hears silence, or "user" if that is given too. Returns stream -> token ids [levels, frames] of
        what the task fills and of the text, and as `audio` what the voice's say. `length` in frames; by default as long
        as the user's audio or the ids, or until the words are said.
        """
        hears, speaks, writes = (getattr(self.system.interaction, role) for role in ("hears", "speaks", "writes"))
        asked = self.system.task(task)
        scripted = writes in asked.given
        if strange := [name for name in asked.given if name not in (hears, writes)]:
            raise RequestError(f"fill: task '{task}': '{strange[0]}' cannot be given while the conversation goes on")
        length = None if length is None else whole(length, "fill: length", 0)
        limit = whole(limit, "fill: limit", 0)
        if isinstance(given, list):
            seeds = list(seed) if isinstance(seed, list | tuple | range | np.ndarray) else [seed] * len(given)
            if len(seeds) != len(given):
                raise RequestError(f"fill: {len(seeds)} seeds for {len(given)} items")
            return [self.fill(task, one, length, own, limit) for one, own in zip(given, seeds)]
        if not isinstance(given, Mapping | None):
            raise RequestError(f"fill: given is {given!r:.60}: a mapping of streams to what they hold is expected")
        given = given or {}
        session, size = self.duplex(seed), self.system.frame_size
        samples = np.zeros(0, dtype=np.float32)
        if unknown := sorted(set(given) - {hears, *asked.given}):
            raise RequestError(f"fill: task '{task}' takes {', '.join(asked.given)}, not '{unknown[0]}'")
        if not scripted or hears in given:
            samples = self._heard("user", given.get(hears))
        if scripted:
            self._give_text(session, given.get(writes, ""), length)
        heard = -(-len(samples) // size)
        outputs: list[DuplexOutput] = []
        while len(outputs) < length if length is not None else (len(outputs) < heard or session.saying):
            frame = np.zeros(size, dtype=np.float32)
            piece = samples[len(outputs) * size : (len(outputs) + 1) * size]
            frame[: len(piece)] = piece
            outputs.append(session.step(frame))
            if len(outputs) > limit:
                raise RequestError(f"fill: more than {limit} frames: give a higher limit")
        filled: dict[str, Any] = {
            name: np.array([out.tokens[name] for out in outputs], dtype=np.int64).T
            for name in self.system.says
            if name in (*asked.given, *asked.fills)
        }
        if speaks in asked.fills:
            audio = np.concatenate([out.audio for out in outputs]) if outputs else np.zeros(0, dtype=np.float32)
            filled["audio"] = Audio(audio[None], self.sample_rate)
        return filled

    @staticmethod
    def _give_text(session: DuplexSession, text: Any, length: int | None) -> None:
        """The whole text stream of a session that begins: words with silence around them, or ids."""
        if not isinstance(text, str):
            session.say(np.asarray(text).reshape(-1).tolist())
            return
        before = LISTENS_FIRST if length is None else max(0, min(LISTENS_FIRST, length - 1))
        pad = session.lockstep.system.pad
        session.say([pad] * before)
        session.say(text)
        session.say([pad] * (SPEAKS_ON if length is None else length))

    def features(self, audio: Any, layer: int | None = None):
        """Frames that the model hears with: `.values` [T, D], `.frame_rate` Hz; a list gives a list."""
        if isinstance(audio, list):
            return [self.features(one, layer) for one in audio]
        if layer is not None:
            raise RequestError(f"features: {self.name}'s encoder has one layer; leave layer out")
        samples = torch.from_numpy(self._heard("user", audio))
        with torch.inference_mode():
            values = self.system.ear.features(samples[None].to(self.device))[0]
        return Features(values.float().cpu().numpy(), self.sample_rate / self.system.frame_size)

    def resynth(self, audio: Any):
        """Through the voice's tokens and back: as many samples as were given; a list gives a list."""
        if isinstance(audio, list):
            return [self.resynth(one) for one in audio]
        return resynthesize(self.system.codec, self._heard("user", audio))

    def _heard(self, role: str, audio: Any) -> np.ndarray:
        """Mono samples [n] at the model's rate; checks role and audio."""
        if role != "user":
            raise RequestError(f"turn of role '{role}': {self.name} hears turns of 'user' only")
        return mono_samples(audio, self.sample_rate, "the user's turn")


def joined(pieces: Sequence[Piece], sample_rate: int) -> Reply:
    """Pieces of what is said, put together; their seconds count from the first one's audio."""
    audio = np.concatenate([piece.audio for piece in pieces]) if pieces else np.zeros(0, np.float32)
    texts = [(piece.seconds, piece.text) for piece in pieces if piece.text]
    return Reply(together([text for _, text in texts]).strip(), Audio(audio[None], sample_rate), texts)
