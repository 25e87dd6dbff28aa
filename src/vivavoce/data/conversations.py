"""Simulated full-duplex conversations about digits: what the user's channel sounds like, and what a model should do.

One conversation is a timeline of *episodes* (a digit, two digits, other speech, nothing) in the user's channel and,
on the frame clock, the streams that a model has to fill:

    user   log-mel frames (given)
    heard  the user's words, each at the first frame by which it has been heard whole
    text   the answer's words, each `lead` frames before the voice says it
    voice  the codec's codes of the answer, the codes of silence elsewhere

Time: frame i of the user's channel ends at (i + 1) x 80 ms; only then can cell i of the filled streams be decided, and
it is played while the user's next frame comes in. All waits below are counted from the end of a word to that decision.

Everything is a pure function of (seed, number), so that training data needs no state and resumes anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from vivavoce.data.spectral import Backgrounds, PowerClip, reverberate, smooth_curve, stretch
from vivavoce.data.sums import DIGITS, answer

MEL_FRAMES = 8  # 10 ms frames in a frame of the model's clock (80 ms)


@dataclass(frozen=True)
class Spoken:
    """An answer in the model's voice: codes [codebooks, frames] from its first sound on, words with their times."""

    text: str
    codes: np.ndarray
    words: tuple[tuple[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class Timing:
    """When the model speaks (seconds from the end of the user's word to the decision), and how it yields."""

    single: float = 0.63  # a second digit may start up to 0.5 s after the first, silence inside the clips aside
    sum: float = 0.20
    heard: float = 0.12
    stop: float = 0.14  # from the start of the user's speech to the model's silence
    lead: int = 1  # frames that a word's text is ahead of its sound


@dataclass(frozen=True)
class Scene:
    """Ranges of the acoustic scene; decibels relative to full scale where not said otherwise."""

    level: tuple[float, float] = (-46.0, -6.0)
    snr: tuple[float, float] = (0.0, 40.0)
    quiet: float = 0.25  # share of conversations with hardly any noise
    music: float = 0.08  # shares of conversations with tones, and with knocks, beside what is said
    knocks: float = 0.12
    empty: float = 0.06  # share of conversations in which nobody speaks at all: noise, tones, knocks
    vocal_tract: tuple[float, float] = (0.82, 1.22)
    tempo: tuple[float, float] = (0.75, 1.3)
    equaliser: float = 6.0
    room: float = 0.3
    episodes: Mapping[str, float] = field(
        default_factory=lambda: {"single": 0.24, "sum": 0.38, "other": 0.32, "nothing": 0.06}
    )
    plus: float = 0.35
    fluent: float = 0.2  # share of the sums that one voice says as one sentence
    barge_in: float = 0.25
    told: float = 0.25  # share of conversations whose text is given, whatever the user says
    dictation: float = 0.0  # share in which the user says word after word and no answer is learned: only to hear


@dataclass
class Conversation:
    """One example: user [frames * 8, bins] power, heard and text [frames] word ids, voice [codebooks, frames].

    `told`: the text was given, whatever the user says. `decided` [frames] bool: where the text is for the model to
    choose: all of it, the result of a given sum, or (where the user is silent) all but the first word of what is given,
    so that it also knows when a word is due; nothing in dictation. `events` (kind, start, end in seconds, text): for
    people, and for a task that labels words ("word", and "other" where a lone word is heard whole).
    """

    user: np.ndarray
    heard: np.ndarray
    text: np.ndarray
    voice: np.ndarray
    told: bool
    decided: np.ndarray
    events: list[tuple[str, float, float, str]]


def frame_deciding(end: int, wait: float) -> int:
    """First frame i that is decided `wait` seconds after 10 ms frame `end`: (i + 1) x 8 >= end + wait."""
    return -(-(end + round(wait * 100)) // MEL_FRAMES) - 1


class ClipBank:
    """Clips by what is said: `words` (digits and "plus") by word, whole `sums`, `other` speech without an order."""

    def __init__(
        self,
        words: Mapping[str, Sequence[PowerClip]],
        other: Sequence[PowerClip],
        sums: Sequence[PowerClip] = (),
    ):
        self.words = {word: list(clips) for word, clips in words.items()}
        self.other, self.sums = list(other), list(sums)
        self.by_speaker: dict[str, dict[str, list[PowerClip]]] = {}
        for word, clips in self.words.items():
            for clip in clips:
                self.by_speaker.setdefault(clip.speaker, {}).setdefault(word, []).append(clip)
        self.speakers = [s for s, words in sorted(self.by_speaker.items()) if sum(w in words for w in DIGITS) == 10]
        sources = [next(iter(self.by_speaker[s].values()))[0].source for s in self.speakers]
        # A source counts by the logarithm of its voices; recordings are few and worth most, and voices that were cut
        # out of recordings are worth more than those made by rule.
        counts = {source: sources.count(source) for source in sources}
        worth = [2.0 if not _synthetic(s) else 1.0 if s == "synthetic-espeak" else 1.6 for s in sources]
        weights = np.array([np.log1p(counts[s]) / counts[s] * w for s, w in zip(sources, worth)])
        self.weights = weights / weights.sum()
        made = [_synthetic(clip.source) for clip in self.other]
        share = np.array([0.6 / max(1, sum(made)) if m else 0.4 / max(1, len(made) - sum(made)) for m in made])
        self.other_weights = share / share.sum() if len(share) else share

    def lone_words(self) -> list[str]:
        """The words that occur alone in other speech."""
        return sorted({clip.text for clip in self.other if len(clip.text.split()) == 1})

    def speaker(self, rng: Generator) -> str:
        """A speaker at random, by the sources' weights."""
        return self.speakers[rng.choice(len(self.speakers), p=self.weights)]

    def clip(self, rng: Generator, speaker: str, word: str) -> PowerClip:
        """`word` by `speaker`, or by anybody where that speaker never says it (no corpus of digits has "plus")."""
        clips = self.by_speaker[speaker].get(word) or self.words[word]
        return clips[rng.integers(len(clips))]


def _synthetic(source: str) -> bool:
    return source.startswith("synthetic")


class Conversations:
    """`conversations(number)` -> Conversation: an endless, reproducible list."""

    def __init__(
        self,
        bank: ClipBank,
        answers: Mapping[str, Spoken],
        silence: np.ndarray,
        vocabulary: Mapping[str, int],
        backgrounds: Backgrounds,
        frames: int = 96,
        timing: Timing | None = None,
        scene: Scene | None = None,
        seed: int = 0,
    ):
        self.bank, self.answers, self.silence, self.vocabulary = bank, answers, silence, vocabulary
        self.sentences = list(answers.values())
        self.backgrounds, self.frames = backgrounds, frames
        self.timing, self.scene, self.seed = timing or Timing(), scene or Scene(), seed
        self.kinds = list(self.scene.episodes)
        weights = np.array([self.scene.episodes[k] for k in self.kinds])
        self.weights = weights / weights.sum()

    def __call__(self, number: int) -> Conversation:
        rng = np.random.default_rng([self.seed, number])
        size = self.frames * MEL_FRAMES
        dictation = rng.random() < self.scene.dictation
        told = not dictation and rng.random() < self.scene.told
        example = Conversation(
            user=np.zeros((size, self.backgrounds.bins), dtype=np.float32),
            heard=np.zeros(self.frames, dtype=np.int64),
            text=np.zeros(self.frames, dtype=np.int64),
            voice=np.repeat(self.silence[:, None], self.frames, axis=1).astype(np.int64),
            told=told,
            decided=np.full(self.frames, not (told or dictation)),
            events=[],
        )
        if dictation:
            self._dictate(rng, example)
            self._scene(rng, example, empty=False)
            return example
        at = int(rng.uniform(0, 120))
        free = at  # from here on the model is silent again
        # Half of the told ones have a silent user: the voice must not need to hear what it says.
        alone = told and number % 2 == 1
        empty = not told and rng.random() < self.scene.empty
        while at < size and not (alone or empty):
            at, free = self._episode(rng, example, at, free)
        if told:
            self._tell(rng, example, alone)
        self._scene(rng, example, empty)
        return example

    def _episode(self, rng: Generator, example: Conversation, at: int, free: int) -> tuple[int, int]:
        """Place an episode at 10 ms frame `at`; returns where the next may start and when the model falls silent."""
        kind = self.kinds[rng.choice(len(self.kinds), p=self.weights)]
        if kind == "nothing":
            return at + int(rng.uniform(50, 250)), free
        speaker, voice, gain = self._someone(rng)
        if kind == "other":
            start, end = self._interrupt(rng, example, voice, at, gain)
            self._yield(example, start, free)
            return end + int(rng.uniform(40, 150)), min(free, start)
        if kind == "sum" and self.bank.sums and rng.random() < self.scene.fluent:
            spans, end = self._sentence(rng, example, voice, at, gain)
            words = [word for word, _, _ in spans if word != "plus"]
        else:
            words = [DIGITS[rng.integers(10)] for _ in range(1 if kind == "single" else 2)]
            said = [words[0], "plus", words[1]] if kind == "sum" and rng.random() < self.scene.plus else list(words)
            spans, end = [], at
            for i, word in enumerate(said):
                clip = self._voiced(self.bank.clip(rng, speaker, word), voice)
                begin = at if i == 0 else end + int(rng.uniform(0, 58 if len(said) < 3 else 40))
                start, end = self._place(example, clip, begin, gain)
                spans.append((word, start, end))
        for word, start, stop in spans:
            self._mark(example, word, start, stop)
        self._yield(example, spans[0][1], free)
        text = answer(words)
        if example.told:
            return end + int(rng.uniform(60, 200)), free
        wait = self.timing.single if kind == "single" else self.timing.sum
        decision = frame_deciding(end, wait)
        spoken_until = self._say(example, self.answers[text], decision)
        if rng.random() < self.scene.barge_in:
            # Early enough to cut into the answer, late enough not to be the second digit of this question.
            earliest = (decision + self.timing.lead + 2) * MEL_FRAMES
            return int(rng.uniform(earliest, max(earliest + 1, spoken_until))), spoken_until
        return spoken_until + int(rng.uniform(10, 160)), spoken_until

    def _dictate(self, rng: Generator, example: Conversation) -> None:
        """Word after word: a few of a speaker, then of another; digits, sums, other words between them."""
        at = int(rng.uniform(0, 60))
        speaker, voice, gain = self._someone(rng)
        while at < len(example.user):
            if rng.random() < 0.4:
                speaker, voice, gain = self._someone(rng)
            what = rng.random()
            if what < 0.25:
                _, end = self._interrupt(rng, example, voice, at, gain, longest=150)
            elif what < 0.4 and self.bank.sums:
                spans, end = self._sentence(rng, example, voice, at, gain)
                for span in spans:
                    self._mark(example, *span)
            else:
                word = "plus" if rng.random() < 0.08 else DIGITS[rng.integers(10)]
                start, end = self._place(example, self._voiced(self.bank.clip(rng, speaker, word), voice), at, gain)
                self._mark(example, word, start, end)
            at = end + int(rng.uniform(0, 50))

    def _someone(self, rng: Generator) -> tuple[str, tuple[float, float], np.float32]:
        """A speaker, how the voice is altered (vocal tract, tempo), and how loud it is (gain of the power)."""
        speaker = self.bank.speaker(rng)
        voice = (rng.uniform(*self.scene.vocal_tract), rng.uniform(*self.scene.tempo))
        return speaker, voice, np.float32(10 ** (rng.normal(0, 2) / 10))

    def _sentence(
        self, rng: Generator, example: Conversation, voice: tuple[float, float], at: int, gain: np.float32
    ) -> tuple[list[tuple[str, int, int]], int]:
        """A sum as one sentence: its words with start and end, and where its sound ends."""
        clip = self._voiced(self.bank.sums[rng.integers(len(self.bank.sums))], voice)
        start, end = self._place(example, clip, at, gain)
        spans = [(word, start - clip.start + first, start - clip.start + last) for word, first, last in clip.words]
        return spans, max(end, spans[-1][2])

    def _interrupt(
        self,
        rng: Generator,
        example: Conversation,
        voice: tuple[float, float],
        at: int,
        gain: np.float32,
        longest: int = 500,
    ) -> tuple[int, int]:
        """Other speech; a lone word that is heard whole keeps its text among the events."""
        clip = self._other(rng, voice, longest)
        start, end = self._place(example, clip, at, gain)
        example.events.append(("other", start / 100, end / 100, clip.text))
        return start, end

    def _voiced(self, clip: PowerClip, voice: tuple[float, float]) -> PowerClip:
        """The clip in an altered voice: vocal tract, tempo."""
        power, slower = stretch(clip.power, voice[1], voice[0]), voice[1]
        words = tuple((word, round(start * slower), round(end * slower)) for word, start, end in clip.words)
        return PowerClip(
            power, clip.text, round(clip.start * slower), round(clip.end * slower), clip.speaker, words=words
        )

    def _other(self, rng: Generator, voice: tuple[float, float], longest: int) -> PowerClip:
        """0.3 s of other speech up to `longest` 10 ms frames; with its text where it is a lone word, whole."""
        clip = self.bank.other[rng.choice(len(self.bank.other), p=self.bank.other_weights)]
        if len(clip.text.split()) == 1 and len(clip.power) <= longest and rng.random() < 0.8:
            return self._voiced(clip, voice)
        size = min(len(clip.power), int(rng.uniform(30, longest)))
        if size == len(clip.power) and len(clip.text.split()) == 1:
            return self._voiced(clip, voice)
        start = int(rng.integers(0, len(clip.power) - size + 1))
        return self._voiced(PowerClip(clip.power[start : start + size], "", 0, size, clip.speaker), voice)

    @staticmethod
    def _place(example: Conversation, clip: PowerClip, at: int, gain: np.float32) -> tuple[int, int]:
        """Add a clip whose speech starts at `at` (loudness normalised, then `gain`); returns its speech's span."""
        level = clip.power[clip.start : clip.end].sum(1)
        loud = level[level > level.max() * 0.03].mean() if len(level) else 1.0
        power = clip.power * (gain / max(loud, 1e-12))
        begin = max(0, at - clip.start)
        room = len(example.user) - begin
        if room > 0:
            example.user[begin : begin + len(power)] += power[:room]
        return begin + clip.start, begin + clip.end

    def _mark(self, example: Conversation, word: str, start: int, end: int) -> None:
        """The user's word has been heard some time after its end."""
        example.events.append(("word", start / 100, end / 100, word))
        frame = frame_deciding(end, self.timing.heard)
        if frame < self.frames:
            example.heard[frame] = self.vocabulary[word]

    def _cells(self, spoken: Spoken, frame: int) -> list[int]:
        """Where its words stand in the text stream if it is said from `frame` on."""
        return [frame + int(second * 100 / MEL_FRAMES) for _, second in spoken.words]

    def _say(self, example: Conversation, spoken: Spoken, frame: int, cells: Sequence[int] | None = None) -> int:
        """Write what is said from `frame` on, its words at `cells`; returns the 10 ms frame at which its sound ends in
        the room."""
        for (word, _), at in zip(spoken.words, cells or self._cells(spoken, frame)):
            if at < self.frames:
                example.text[at] = self.vocabulary[word]
        first = frame + self.timing.lead
        codes = spoken.codes[:, : max(0, self.frames - first)]
        example.voice[:, first : first + codes.shape[1]] = codes
        until = (first + 1) * MEL_FRAMES + int(spoken.seconds * 100)
        example.events.append(("answer", (first + 1) * MEL_FRAMES / 100, until / 100, spoken.text))
        return until

    def _yield(self, example: Conversation, start: int, free: int) -> None:
        """The user starts at `start`: if the model still speaks (until `free`) it falls silent."""
        if example.told or start >= free:
            return
        frame = frame_deciding(start, self.timing.stop)
        example.text[frame:] = 0
        example.voice[:, frame:] = self.silence[:, None]
        example.events.append(("yield", start / 100, (frame + 1) * MEL_FRAMES / 100, ""))

    def _tell(self, rng: Generator, example: Conversation, alone: bool) -> None:
        """Text that is given: any answer at any time, so that the voice follows the text alone.

        Where the user is silent the model also learns when the next word is due; elsewhere what a given sum makes, or
        words stand a frame early or late: a voice must bear moments that are not its recording's own.
        """
        frame = int(rng.integers(0, 12))
        while frame < self.frames:
            spoken = self.sentences[rng.integers(len(self.sentences))]
            if rng.random() < 0.2:  # answers of one word are one in eleven, and wanted oftener
                spoken = self.answers[DIGITS[rng.integers(10)]]
            words = [word for word, _ in spoken.words]
            cells = self._cells(spoken, frame)
            if not alone and rng.random() < 0.5:
                for i in range(1, len(cells)):
                    cells[i] = max(cells[i] + int(rng.integers(-1, 2)), cells[i - 1] + 1)
            elif alone or "is" in words:
                given = 1 if alone else words.index("is") + 1
                example.decided[cells[given - 1] + 1 : cells[-1] + 1] = True
            until = self._say(example, spoken, frame, cells)
            frame = -(-until // MEL_FRAMES) + int(rng.integers(2, 20))

    def _scene(self, rng: Generator, example: Conversation, empty: bool) -> None:
        """Microphone, room, noise and level over the whole conversation."""
        scene, backgrounds, size = self.scene, self.backgrounds, len(example.user)
        user = example.user * smooth_curve(rng, backgrounds.bins, rng.uniform(0, scene.equaliser))
        if rng.random() < scene.room:
            user = reverberate(user, rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.6))
        snr = rng.uniform(*scene.snr) if rng.random() > scene.quiet else rng.uniform(40, 70)
        user = user + _share(snr, backgrounds) * backgrounds.noise(rng, size)
        # Alone, tones and knocks may be as loud as speech ever is.
        often, least = (0.4, -6.0) if empty else (0.0, 3.0)
        if rng.random() < max(scene.music, often):
            user = user + _share(rng.uniform(least, 25), backgrounds) * backgrounds.music(rng, size)
        if rng.random() < max(scene.knocks, often):
            user = user + _share(rng.uniform(least, 25), backgrounds) * backgrounds.knocks(rng, size)
        level = rng.uniform(*scene.level)
        # Loud frames have a total power of one here; by Parseval a wave of RMS r has r^2 times all bins (0-8 kHz).
        example.user = user * np.float32(10 ** (level / 10) * backgrounds.bins * 2)


def _share(decibels_below: float, backgrounds: Backgrounds) -> np.float32:
    """The power a bin of a background that is so far below speech."""
    return np.float32(10 ** (-decibels_below / 10) / backgrounds.bins)
