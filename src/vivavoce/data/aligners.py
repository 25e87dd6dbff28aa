"""When the words of a recording are said: by pocketsphinx, offline, or by a published CTC recogniser.

    aligner = load_aligner("pocketsphinx")          # English; in the extra `eval`
    aligner = load_aligner("ctc:DIRECTORY")         # any AutoModelForCTC of transformers; a directory or hub id
    aligner.words(audio, "hello there")             # [Word("hello", 0.31, 0.62), …]; as the text writes them
    aligner.hear(audio)                             # the same without a text: what it recognises
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vivavoce.audio import Audio
from vivavoce.data.clips import Word
from vivavoce.data.ctc_alignment import forced_path, token_spans
from vivavoce.errors import CheckpointError, DataError, RequestError, need

SPHINX, CTC = "pocketsphinx", "ctc"
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # of transformers' directories, pickles left out
PIECE, AROUND = 30.0, 1.0  # seconds that a network hears at once, and of what is heard around them


class Aligner(Protocol):
    """Words with their times, of mono audio of any rate; seconds from its begin."""

    name: str

    def words(self, audio: Audio, text: str) -> list[Word]:
        """The words of `text`; those of which nothing can be spoken (a dash) are left out. `DataError` where the text
        does not fit the sound."""
        ...

    def hear(self, audio: Audio) -> list[Word]:
        """What is recognised, [] for nothing."""
        ...


def load_aligner(name: str, device: str = "cpu") -> Aligner:
    """An aligner by name: `pocketsphinx`, or `ctc:` and a directory or hub id `owner/name[@revision]`.

    Raises `RequestError` where there is none of that name, `CheckpointError` for a directory that is not whole.
    """
    kind, _, place = str(name).partition(":")
    if kind == SPHINX and not place:
        return SphinxAligner()
    if kind == CTC and place:
        return CtcAligner(place, device)
    raise RequestError(f"aligner '{name}': there are {SPHINX} and {CTC}:DIRECTORY (or a hub id), textgrid:FOLDER")


class SphinxAligner:
    """pocketsphinx and its US English model. Words that its dictionary does not have are spoken as they are spelled."""

    name, rate = SPHINX, 16000

    def __init__(self) -> None:
        self._sphinx = need("pocketsphinx", "eval", "the aligner 'pocketsphinx'")
        self._decoder: Any = self._sphinx.Decoder(samprate=self.rate, loglevel="FATAL")
        self._free: Any = None  # one with a language model, for what has no text

    def words(self, audio: Audio, text: str) -> list[Word]:
        written, parts = [], []
        for word in text.split():
            spoken = [name for name in _spoken(word) if self._known(name)]
            if spoken:
                written.append(word)
                parts.append(spoken)
        if not written:
            return []
        self._decoder.set_align_text(" ".join(name for names in parts for name in names))
        found = self._decoded(self._decoder, audio)
        if len(found) != sum(len(names) for names in parts):
            raise DataError(f"pocketsphinx finds no path of '{text[:40]}' through {audio.duration:.2f} s of sound")
        words, at = [], 0
        for word, names in zip(written, parts, strict=True):
            some = found[at : at + len(names)]
            words.append(Word(word, some[0].start, some[-1].end))
            at += len(names)
        return words

    def hear(self, audio: Audio) -> list[Word]:
        self._free = self._free or self._sphinx.Decoder(samprate=self.rate, loglevel="FATAL")
        return self._decoded(self._free, audio)

    def _decoded(self, decoder: Any, audio: Audio) -> list[Word]:
        """Words of the decoder's present search, a hundred frames a second; fillers (`<sil>`, `[NOISE]`) left out."""
        samples = audio.mono().resample(self.rate).samples[0]
        decoder.start_utt()
        if len(samples):
            decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        heard = [] if decoder.hyp() is None else list(decoder.seg() or ())
        most, said = audio.duration, [part for part in heard if part.word[0] not in "<[+"]
        return [
            Word(re.sub(r"\(\d+\)$", "", part.word), min(first, most), min(last, most))
            for part in said
            for first, last in [(part.start_frame / 100, (part.end_frame + 1) / 100)]
        ]

    def _known(self, word: str) -> bool:
        """Whether the decoder can say a word; it learns it if there is a way to spell it."""
        if self._decoder.lookup_word(word) is None:
            phones = spelled(word)
            if not phones:
                return False
            self._decoder.add_word(word, " ".join(phones))
        return True


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _spoken(word: str) -> list[str]:
    """A written word as lower-case words of letters; digits one by one."""
    text = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", word.lower().replace("’", "'"))
    return [name for name in (part.strip("'") for part in re.split(r"[^a-z']+", text)) if name]


# How letters sound, roughly: enough to find where a name is that no dictionary has. ARPAbet, as CMU's dictionary.
_SOUNDS = {
    "tch": "CH", "sch": "SH", "igh": "AY", "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "ck": "K", "ng": "NG",
    "qu": "K W", "wh": "W", "kn": "N", "wr": "R", "oo": "UW", "ee": "IY", "ea": "IY", "ai": "EY", "ay": "EY",
    "ei": "EY", "ey": "IY", "ie": "IY", "oa": "OW", "ou": "AW", "ow": "OW", "oi": "OY", "oy": "OY", "au": "AO",
    "aw": "AO", "ar": "AA R", "er": "ER", "ir": "ER", "ur": "ER", "or": "AO R", "a": "AE", "b": "B", "c": "K",
    "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N",
    "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IY",
    "z": "Z",
}  # fmt: skip


def spelled(word: str) -> list[str]:
    """Phones (ARPAbet) of a word of English letters, one after another as they are spelled."""
    phones: list[str] = []
    letters = re.sub(r"(.)\1", lambda pair: pair[0] if pair[1] in "oe" else pair[1], re.sub("[^a-z]", "", word))
    if len(letters) > 3 and letters.endswith("e") and letters[-2] not in "aeiou":
        letters = letters[:-1]
    at = 0
    while at < len(letters):
        size = next(n for n in (3, 2, 1) if letters[at : at + n] in _SOUNDS)
        phones += _SOUNDS[letters[at : at + size]].split()
        at += size
    return phones


class CtcAligner:
    """A recogniser with a CTC head in transformers' format (wav2vec 2.0, HuBERT, WavLM, MMS, Parakeet CTC, …).

    The text is written as its vocabulary has it: in the case of its letters, with its mark between words; what it
    cannot write is left out. Long recordings are heard in pieces, and aligned as a whole.
    """

    def __init__(self, name: str | Path, device: str = "cpu"):
        from vivavoce.hub import local_place

        transformers = need("transformers", "hub", f"the aligner '{CTC}:{name}'")
        self.name, directory = f"{CTC}:{name}", local_place(name, "aligner", FILES)
        try:
            self._features: Any = transformers.AutoFeatureExtractor.from_pretrained(directory)
            self._tokens: Any = transformers.AutoTokenizer.from_pretrained(directory)
            model: Any = transformers.AutoModelForCTC.from_pretrained(directory, use_safetensors=True)
        except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
            why = str(error).strip().split("\n")[0]
            raise CheckpointError(f"'{name}' is no CTC recogniser that transformers can load: {why}") from error
        self._model = model.to(device).eval()
        self.rate, self._blank = int(self._features.sampling_rate), int(model.config.pad_token_id or 0)
        vocabulary = {token: number for token, number in self._tokens.get_vocab().items() if number != self._blank}
        self._letters = vocabulary if hasattr(self._tokens, "word_delimiter_token") else None
        self._between = vocabulary.get(str(getattr(self._tokens, "word_delimiter_token", None)))

    def words(self, audio: Audio, text: str) -> list[Word]:
        written = [(word, ids) for word in text.split() if (ids := self._ids(word))]
        if not written:
            return []
        tokens: list[int] = []
        owners: list[int] = []  # the word of each token, -1 for the mark between words
        for number, (_, ids) in enumerate(written):
            if number and self._between is not None:
                tokens, owners = [*tokens, self._between], [*owners, -1]
            tokens, owners = [*tokens, *ids], [*owners, *[number] * len(ids)]
        log_probs = self._log_probs(audio)
        spans = token_spans(forced_path(log_probs, tokens, self._blank), len(tokens))
        frame = audio.duration / len(log_probs)
        found, of = [], np.asarray(owners)
        for number, (word, _) in enumerate(written):
            mine = spans[of == number]
            found.append(Word(word, float(mine[0, 0] * frame), float(mine[-1, 1] * frame)))
        return found

    def hear(self, audio: Audio) -> list[Word]:
        if not len(audio):
            return []
        best = self._log_probs(audio).argmax(-1)
        return self.words(audio, str(self._tokens.decode(best.tolist())))

    def _ids(self, word: str) -> list[int]:
        """A word in the recogniser's vocabulary, [] where it can write nothing of it."""
        if self._letters is None:
            none = (getattr(self._tokens, "unk_token_id", None), self._blank)
            return [i for i in self._tokens(word, add_special_tokens=False).input_ids if i not in none]
        forms = ([self._letters.get(letter) for letter in form] for form in (word, word.upper(), word.lower()))
        ids = max(forms, key=lambda form: sum(i is not None for i in form))
        return [i for i in ids if i is not None and i != self._between]

    def _log_probs(self, audio: Audio) -> np.ndarray:
        """Log-probabilities [T, V] of the whole, float32; frames stand where they would in one piece."""
        import torch

        samples = audio.mono().resample(self.rate).samples[0]
        piece, around = round(PIECE * self.rate), round(AROUND * self.rate)
        if len(samples) <= piece + 2 * around:
            return self._piece(torch, samples)
        found = []
        for start in range(0, len(samples), piece):
            first, last = max(0, start - around), min(len(samples), start + piece + around)
            some = self._piece(torch, samples[first:last])
            frames = [round((time - first) / (last - first) * len(some)) for time in (start, min(start + piece, last))]
            found.append(some[frames[0] : frames[1]])
        return np.concatenate(found)

    def _piece(self, torch: Any, samples: np.ndarray) -> np.ndarray:
        given = self._features(samples, sampling_rate=self.rate, return_tensors="pt")
        with torch.inference_mode():
            try:
                logits = self._model(**{name: value.to(self._model.device) for name, value in given.items()}).logits[0]
            except (RuntimeError, ValueError) as error:  # shorter than the network's first layers reach
                raise DataError(f"{self.name}: {len(samples)} samples cannot be heard: {error}") from error
        return logits.float().log_softmax(-1).cpu().numpy()


def pauses(words: Sequence[Word], longest: float = 0.6) -> list[list[Word]]:
    """Words in groups: a new one where nothing is said for `longest` seconds."""
    groups: list[list[Word]] = []
    for word in words:
        if not groups or word.start > groups[-1][-1].end + longest:
            groups.append([])
        groups[-1].append(word)
    return groups
