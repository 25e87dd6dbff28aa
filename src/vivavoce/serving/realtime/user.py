"""The user's side of a Realtime conversation: turns by voice activity, their items, and the words of their transcripts.

Voice activity ends speech after a tenth of a second here; the session's own rule says how much longer a pause may be
before the turn is over. So a model that answers sooner than the rule takes the turn in order: the user's is committed
first, then the response begins.
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivavoce.dialogue.turn_detection import TurnRules
from vivavoce.dialogue.turns import LOUD
from vivavoce.serving.conversation import Conversation, Frame
from vivavoce.serving.realtime.items import KEPT, History, Item, Sound, as_int16
from vivavoce.serving.realtime.models import threshold_of
from vivavoce.serving.realtime.settings import EAGERNESS

PAUSE = 0.1  # seconds of quiet that voice activity takes for the end of speech
SETTLE = 1.0  # seconds after the last word, or the end of the turn, when a transcript is complete
RECOGNISED = 20.0  # seconds that a recogniser may take for it, where the model has no words of its own
EARLY = 1.0  # seconds that words may come before voice activity has noticed any speech
NOTICED = 0.3  # seconds in which voice activity notices speech, if it does: what is answered later it has missed
QUIET = 0.1  # a frame below this part of a turn's loudest one is no speech
LATELY = 40.0  # seconds of what was heard that are kept while nobody speaks: input may be heard in a rush
Post = Callable[[dict[str, Any]], None]


class Heard:
    """What the model has heard lately, frame by frame, also frames that were left out on their way to the client; and
    where a moment is in the sound that the client has appended: silence that filled a gap is not counted."""

    def __init__(self, conversation: Conversation):
        self._conversation, self._ends = conversation, dict[int, int]()
        self._frames: deque[tuple[int, np.ndarray]] = deque()
        self._lock = threading.Lock()
        self.since: float | None = None  # seconds of the conversation that must be kept
        self.cleared = 0  # samples that were appended and thrown away unheard
        conversation.observers.append(self._observe)

    def _observe(self, frame: Frame) -> None:  # in the model's thread
        ring, length = self._conversation.ring, self._conversation.frame_seconds
        self._ends[frame.index] = ring.taken + ring.dropped + self.cleared
        self._ends.pop(frame.index - 2000, None)
        kept = KEPT if self.since is not None else LATELY
        with self._lock:
            self._frames.append((frame.index, as_int16(frame.heard)))
            while len(self._frames) * length > kept:
                self._frames.popleft()

    def take(self, start: float, end: int) -> np.ndarray:
        """Samples [n] int16 from `start` seconds to frame `end`, itself included."""
        length, rate = self._conversation.frame_seconds, self._conversation.sample_rate
        with self._lock:
            frames = [(i, samples) for i, samples in self._frames if (i + 1) * length > start and i <= end]
        cut = [samples[round(max(0.0, start - i * length) * rate) :] for i, samples in frames]
        return np.concatenate([np.zeros(0, np.int16), *cut])

    def position(self, frame: Frame) -> int:
        """How many samples had gone through the conversation's ring with that frame."""
        return self._ends.get(frame.index, 0) - self.cleared

    def ms(self, seconds: float) -> int:
        """Milliseconds of what was appended, `seconds` after the conversation's beginning."""
        conversation = self._conversation
        index = int(seconds / conversation.frame_seconds + 1e-6)
        end = self._ends.get(index)
        if end is None:  # a moment that is still to come
            end = conversation.ring.taken + conversation.ring.dropped + self.cleared
            return round(1000 * end / conversation.sample_rate)
        start = self._ends.get(index - 1, 0 if index == 0 else end - conversation.frame_size)
        inside = (seconds - index * conversation.frame_seconds) * conversation.sample_rate
        return round(1000 * min(start + max(0.0, inside), end) / conversation.sample_rate)


@dataclass
class UserTurn:
    """A turn that goes on: from `begun` (seconds of the conversation), its sound from `start`; `paused`: since when it
    is quiet, if it is.

    whole: what the semantic rule says of it, None while it has not said; `peak`: the loudest frame's level.
    """

    item: Item
    begun: float
    start: float
    paused: float | None = None
    whole: bool | None = None
    peak: float = 0.0
    words: list[str] = field(default_factory=list)


class UserSide:
    """Reads frames; posts what a client is to know of the user.

    turn_rules: the session's turn_detection, None for push to talk. wanted: whether transcripts are told, None where
    the model has none. committed: called with each new item. judge: starts the semantic rule for a turn, if there is.
    """

    def __init__(
        self, post: Post, history: History, conversation: Conversation, turn_rules: Callable[[], dict[str, Any] | None],
        wanted: Callable[[], bool | None], committed: Callable[[Item], None],
        judge: Callable[[UserTurn], None] | None = None,
    ):
        self._post, self._history, self._conversation = post, history, conversation
        self._turn_rules, self._wanted, self._committed, self._judge = turn_rules, wanted, committed, judge
        self.heard = Heard(conversation)
        self.turn: UserTurn | None = None
        self.onset: float | None = None  # when speech last began, and ended, as voice activity has it
        self.offset: float | None = None
        self._early: deque[tuple[float, str]] = deque()
        self._telling: tuple[Item, float] | None = None  # whose transcript is not complete, and when it last grew
        self._ended_early: float | None = None  # voice activity still has a turn that was ended then
        self._committed_at = 0.0  # seconds of the conversation at which the last item ended
        self._given = False  # an item that was handed over whole is being heard: voice activity in it is no turn
        self._given_ms = 0
        self._now, self._index = 0.0, 0  # seconds of the conversation, and the frame

    def rules(self) -> TurnRules:
        """What voice activity is to go by."""
        return TurnRules(threshold=threshold_of(self._turn_rules()), silence=PAUSE)

    @property
    def silence(self) -> float:
        """Seconds of quiet after which a turn is over."""
        given = self._turn_rules() or {}
        if given.get("type") != "semantic_vad":
            return given.get("silence_duration_ms", 500) / 1000
        longest = EAGERNESS[given["eagerness"]]
        turn = self.turn
        if self._judge is None:
            return longest / 4
        return 0.0 if turn is not None and turn.whole else longest

    # -- frames --

    def frame(self, frame: Frame) -> None:
        """One more frame of the conversation."""
        self._index = frame.index
        now = self._now = (frame.index + 1) * self._conversation.frame_seconds
        for turn in frame.turns:
            if turn.kind == "user_started":
                self.onset, self.offset = turn.seconds, None
                self._started(turn.seconds)
            elif turn.kind == "user_stopped":
                self.offset = turn.seconds
                self._paused(turn.seconds)
        if self.turn is not None:
            self.turn.peak = max(self.turn.peak, level(frame.heard))
        if frame.user_text:
            self._word(frame.user_text, now)
        if self.turn is not None and self.turn.paused is not None and now - self.turn.paused >= self.silence - 1e-6:
            self._end(self.turn, self.turn.paused)
        self._settle(now)

    def model_began(self, frame: Frame) -> None:
        """The model takes the turn: the user's is over, if the user is quiet."""
        turn = self.turn
        if turn is not None:
            quiet = turn.paused is not None or level(frame.heard) < max(LOUD, QUIET * turn.peak)
            if quiet:
                end = (frame.index + 1) * self._conversation.frame_seconds
                self._ended_early = None if turn.paused is not None else end
                self._end(turn, min(end, turn.paused if turn.paused is not None else end))
        elif self._early and self._now - self._early[0][0] > NOTICED:
            self._by_words()

    def _started(self, seconds: float) -> None:
        if self._turn_rules() is None or self._given or self.heard.ms(seconds) < self._given_ms:
            return
        self._ended_early = None
        if self.turn is not None:  # the pause was no end
            self.turn.paused = self.turn.whole = None
            return
        self._complete()
        padding = (self._turn_rules() or {}).get("prefix_padding_ms", 300) / 1000
        self._begin(seconds, padding)
        assert self.turn is not None
        start = max(0, self.heard.ms(seconds) - round(1000 * padding))
        self._post(
            {"type": "input_audio_buffer.speech_started", "audio_start_ms": start, "item_id": self.turn.item.id}
        )

    def _begin(self, seconds: float, padding: float) -> None:
        item = Item("message", "user", transcribed=False)
        self.turn = UserTurn(item, seconds, max(self._committed_at, seconds - padding))
        self.heard.since = self.turn.start
        self.turn.words = [word for _, word in self._early]
        self._early.clear()

    def _paused(self, seconds: float) -> None:
        early, self._ended_early = self._ended_early, None
        if self._turn_rules() is None:
            return
        if self.turn is None and early is not None and seconds - early > 2 * PAUSE:
            self._started(early)  # the model had taken the turn of somebody who went on
        if self.turn is not None:
            self.turn.paused = seconds
            if self._judge is not None and (self._turn_rules() or {}).get("type") == "semantic_vad":
                self._judge(self.turn)

    def sound(self, start: float) -> Sound:
        """What was heard from `start` seconds of the conversation until now."""
        sound = Sound(self._conversation.sample_rate)
        sound.add_int16(self.heard.take(start, self._index))
        return sound

    def _end(self, turn: UserTurn, seconds: float) -> None:
        end = self.heard.ms(seconds)
        self._post({"type": "input_audio_buffer.speech_stopped", "audio_end_ms": end, "item_id": turn.item.id})
        self._commit(turn)

    def _commit(self, turn: UserTurn) -> None:
        self.turn = self.heard.since = None
        turn.item.sound = self.sound(turn.start)
        self.add(turn.item)
        for word in turn.words:
            self._tell(turn.item, word)

    # -- items --

    def add(self, item: Item, committed: bool = True, after: str | None = None, heard: bool = True) -> None:
        """An item is whole: it comes into the history, and a transcript may follow; `heard`: whether the model has had
        it all by now (else `heard_all` says when). `committed`: it comes out of the input buffer."""
        self._complete()
        before = self._history.add(item, after)
        if item.sound is not None:
            self._history.keep(item.sound)
        if committed:
            self._post({"type": "input_audio_buffer.committed", "item_id": item.id, "previous_item_id": before})
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._post({"type": kind, "item": item.wire(), "previous_item_id": before})
        self._committed_at, self._given = self._now, not heard
        self._committed(item)
        if item.role == "user" and item.sound is not None:
            self._await_words(item, heard)

    def commit(self) -> None:
        """The client says that the turn is over, whatever voice activity says."""
        if self.turn is not None:
            self._ended_early = None
            self._end(self.turn, self._now)
            return
        self.add(Item("message", "user", sound=self.sound(self._committed_at), transcribed=False))

    def timed_out(self, seconds: float) -> None:
        """Nobody has spoken for so long: that silence is an item of its own."""
        since = max(0.0, self._now - seconds)
        item = Item("message", "user", sound=self.sound(since), transcribed=False)
        start, end = self.heard.ms(since), self.heard.ms(self._now)
        times = {"audio_start_ms": start, "audio_end_ms": end, "item_id": item.id}
        self._post({"type": "input_audio_buffer.timeout_triggered", **times})
        self.add(item)

    def clear(self) -> None:
        """What was said of the turn that goes on does not count."""
        self.turn = self.heard.since = None
        self._committed_at = self._now
        self._early.clear()

    # -- words --

    def _await_words(self, item: Item, heard: bool) -> None:
        if self._wanted() is None:
            error = {
                "type": "invalid_request_error", "code": "unsupported",
                "message": "this model does not tell the user's words: it has no capability 'user_transcript'",
            }  # fmt: skip
            name = "conversation.item.input_audio_transcription.failed"
            self._post({"type": name, "item_id": item.id, "content_index": 0, "error": error})
        else:
            self._telling = (item, self._now if heard else math.inf)

    def heard_all(self) -> None:
        """Everything of the newest item has reached the model: its transcript is complete soon after."""
        if self._given:
            self._given, self._given_ms = False, self.heard.ms(self._now)
        if self._telling is not None and self._telling[1] == math.inf:
            self._telling = (self._telling[0], self._now)

    def _word(self, word: str, now: float) -> None:
        if self.turn is not None:
            self.turn.words.append(word)
        elif self._telling is not None:
            item, since = self._telling
            self._tell(item, word)
            self._telling = (item, since if since == math.inf else now)
        elif self._turn_rules() is not None:
            self._early.append((now, word))

    def _tell(self, item: Item, word: str) -> None:
        first = not item.words
        item.words.append((item.ms, word))
        if self._wanted():
            delta = word if first else f" {word}"
            name = "conversation.item.input_audio_transcription.delta"
            self._post({"type": name, "item_id": item.id, "content_index": 0, "delta": delta})

    def _settle(self, now: float) -> None:
        listener = self._conversation.listener
        patience = RECOGNISED if listener is not None and listener.busy else SETTLE
        if self._telling is not None and now - self._telling[1] >= patience:
            self._complete()
        if self._early and self.turn is None and now - self._early[0][0] > EARLY:
            self._by_words()

    def _by_words(self) -> None:
        """The model has understood something that voice activity did not take for speech: it is a turn all the same."""
        self._begin(max(0.0, self._early[0][0] - EARLY), 0.0)
        assert self.turn is not None
        self._commit(self.turn)

    def _complete(self) -> None:
        if self._telling is None:
            return
        item, _ = self._telling
        self._telling = None
        if self._wanted():
            item.transcribed = True
            self._post({
                "type": "conversation.item.input_audio_transcription.completed", "item_id": item.id,
                "content_index": 0, "transcript": item.text,
                "usage": {"type": "duration", "seconds": round(item.ms / 1000, 3)},
            })  # fmt: skip


def level(samples: np.ndarray) -> float:
    """The RMS of samples [n]."""
    return float(np.sqrt(np.mean(np.square(samples))))
