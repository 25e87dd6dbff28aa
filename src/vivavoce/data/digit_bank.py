"""The clips behind the simulated digit conversations: recordings of the pack and synthetic voices, as power spectra.

Recordings: FSDD's training split (speakers can be left out), LibriSpeech and simulated dialogues as other speech.
Synthetic: digits and "plus" by espeak-ng and flite voices; isolated words and phrases without numbers as other speech,
because a lone word is what is most easily taken for a digit.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from vivavoce.audio import read, resample
from vivavoce.data.conversations import ClipBank
from vivavoce.data.spectral import PowerClip, power_spectrogram, speech_span
from vivavoce.data.sums import DIGITS, NUMBERS
from vivavoce.data.synthesis import installed, synthesize
from vivavoce.errors import DataError, RequestError
from vivavoce.nn.logmel import StreamingLogMel

# Voices that evaluation uses and training must never hear: flite:awb (a Scottish man, as RHVoice's alan is),
# flite:kal16 and its kin flite:kal, espeak accents en-029 and en-gb-x-gbcwmd.
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc")
# espeak-ng's timbres that sound like people, and a few that do not.
TIMBRES = (
    "", "m1", "m3", "m5", "m7", "f1", "f2", "f3", "f4", "croak", "Alex", "Alicia", "Andrea", "Annie", "Denis", "Diogo",
    "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Nguyen", "Reed", "Storm", "adam", "anika",
    "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma",
    "grandpa", "ian", "iven", "john", "kaukovalta", "klatt", "klatt2", "klatt4", "linda", "m2", "m4", "m6", "m8", "max",
    "miguel", "norbert", "paul", "quincy", "rob", "shelby", "steph", "travis", "victor", "zac", "f5",
)  # fmt: skip
# The others read further voices off recordings; those whose program is missing are left out with a warning.
VOICES = ("flite:slt", "flite:rms", "festival:ked", "pico:en-US", "pico:en-GB", "rhvoice:bdl", "rhvoice:clb")
FOREIGN = ("es", "de", "it", "fr-fr", "pt", "pl", "sv", "hi", "tr", "cmn")  # as other speech only
# Other ways to say them than the engines', in espeak-ng's phoneme mnemonics: a vowel or a consonant replaced by one
# near it. None is near to what the accents of the evaluation say (tests/data/test_pronunciations.py).
PRONUNCIATIONS = {
    "zero": ("z'i@roU", "z'e@ro", "z'I@r@U", "z'i@ro:"),  # none with an s: much of what is said begins so
    "one": ("w'Vn", "w'0n", "w'Un", "v'Vn", "w'O:n"),
    "two": ("t'u:", "t'@u:", "t'Iu:", "t'@U", "tS'u:"),
    "three": ("Tr'i:", "sr'i:", "Tr'@i", "Tr'I:"),
    "four": ("f'o@", "f'o:", "f'O:r", "f'u@", "f'oU"),
    "five": ("f'aIv", "f'A:v", "f'aIf", "f'VIv"),
    "six": ("s'Iks", "s'Eks", "s'@ks", "z'Iks"),
    "seven": ("s'Ev@n", "s'Iv@n", "s'EvIn", "z'Ev@n"),
    "eight": ("'eIt", "'aIt", "'e:t", "'Et"),
    "nine": ("n'aIn", "n'A:n", "n'aI@n"),
    "plus": ("pl'Vs", "pl'Us", "pl'a:s", "bl'Vs"),
}
# No homophones of digits (won, ate, for, too): what sounds the same cannot be told apart.
OTHER_WORDS = """
yes no hello stop start left right up down house water dog cat bird music play please thanks morning evening open
close door window light turn off now later maybe never always kitchen table river mountain paper pencil coffee sugar
wonder sentence fix line fine hive weather traffic alarm volume louder quiet again cancel help computer assistant
sheila marvin happy learn follow visual forward backward zebra hero nearly jacket pasta marble orange yellow purple
person finger shoulder engine animal basket circle able about account across adjustment advertisement agreement almost
amount amusement answer apparatus approval argument attack attempt attention attraction authority balance behavior
belief between bitter blood bottle branch bread breath brother bucket building business butter camera canvas careful
carriage cause chain chalk change cheap chemical chief church clean clear clock cloud common company comparison
competition complete condition connection conscious control copper cotton cough country cover cruel current curtain
damage danger daughter decision delicate dependent design desire destruction detail development different digestion
direction discovery discussion disease distance division doubt drawer dress driving education elastic electric example
exchange existence experience expert false family father feather feeling female fertile fiction flower foolish forest
frequent friend future garden general government grain grass group guide hammer harbor harmony history hollow hospital
humor important impulse increase industry insect instrument interest invention island jelly journey judge kettle
knowledge language laugh leather letter level library liquid machine manager market married material measure medical
memory metal middle military minute mixed money monkey mother motion muscle nation natural necessary needle nerve
normal observation office opinion opposite orchestra organization ornament parallel parcel payment picture pleasure
pocket poison polish political position possible potato powder present private probable process produce profit
property protest public punishment purpose quality question railway reaction reading reason receipt record regret
regular relation religion representative respect responsible reward rhythm river rubber sail salt school science
scissors secretary selection separate serious shelf silver simple sister society special spoon spring square station
steam stomach story straight strange structure substance sudden suggestion summer surprise system teaching tendency
theory thread thunder ticket together tomorrow trouble trousers umbrella value vessel village violent voice waiting
warm waste weight whistle window winter woman wood wound writing yesterday young
""".split()
# What differs from a digit by a sound or two is what is oftenest taken for one.
NEAR_WORDS = """
hero narrow sorrow arrow sparrow era euro serious series zebra zoo borrow tomorrow area arrive sierra
want wander run done fun wall wonder warm worn once young do dew shoe who true tool tooth through threw you
thread sea key agree theory thrill theme street screen team form fall phone foot fork force floor store door
more shore far fire fight find fine life drive alive wife knife hive fly file wide sits sick fix mix sticks socks
silk kiss sister seat several sever oven given second servant ever heavy level lesson ape late wait eat it at
state ace age great lake date apple night mine wine line sign nice shine mind nothing name noon none bus plush plum
class please blush pleasure plot close
""".split()
SOUND_LIKE_NUMBERS = {
    *NUMBERS,
    *("won", "ate", "for", "fore", "to", "too", "nein", "sicks", "heaven", "tree", "free", "foe", "toe", "chew"),
}
OTHER_PHRASES = (
    "what is the weather like", "turn off the light", "play some music please", "hey there how are you",
    "good morning everybody", "call my mother", "set an alarm", "the cat sat on the mat", "open the window",
    "I would like a cup of coffee", "where is the station", "stop it right now", "thank you very much",
    "she sells sea shells", "that is not what I meant", "could you repeat that", "never mind", "hey computer",
)  # fmt: skip


def clip_of(
    samples: np.ndarray,
    rate: int,
    front: StreamingLogMel,
    bins: int,
    words: Sequence[tuple[str, float, float]] = (),
    **names: str,
) -> PowerClip:
    """A PowerClip of samples [n] float32 at `rate` Hz, with 100 ms of silence on both sides; `words` in seconds."""
    if rate != front.sample_rate:
        samples = resample(samples[None], rate, front.sample_rate)[0]
    pad = np.zeros(front.sample_rate // 10, dtype=np.float32)
    power = power_spectrogram(np.concatenate([pad, samples, pad]), front, bins)
    start, end = speech_span(power)
    spans = tuple((word, round(begin * 100) + 10, round(stop * 100) + 10) for word, begin, stop in words)
    return PowerClip(
        power.astype(np.float32), names.get("text", ""), start, end, names["speaker"], names["source"], spans
    )


def recorded(
    pack: Path, front: StreamingLogMel, bins: int, leave_out: Sequence[str]
) -> tuple[list[PowerClip], list[PowerClip]]:
    """(digits of FSDD's training split, other speech) of the recorded-speech pack at `pack`.

    Raises `DataError` where it is not all there, `RequestError` for a speaker to leave out that FSDD does not have.
    """
    digits: list[PowerClip] = []
    other: list[PowerClip] = []
    for name in ("fsdd", "librispeech_other", "librispeech_tc100", "dialogue_sim"):
        manifest = pack / "manifests" / f"{name}.jsonl"
        if not manifest.is_file():
            raise DataError(f"{manifest} is missing: the recorded-speech pack is needed to train mini")
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        if name == "fsdd":
            there = {row["speaker"].removeprefix("fsdd_") for row in rows}
            if isinstance(leave_out, str) or not there.issuperset(leave_out):
                raise RequestError(f"leave_out is {leave_out!r}: give a list of some of {', '.join(sorted(there))}")
        for row in rows:
            if name == "fsdd" and (row["split"] == "test" or row["speaker"].removeprefix("fsdd_") in leave_out):
                continue
            audio = read(pack / row["audio"])
            samples = audio.samples.mean(0) if name == "dialogue_sim" else audio.samples[0]
            clip = clip_of(
                samples, audio.sample_rate, front, bins, text=row["text"] or "", speaker=row["speaker"] or name,
                source=name,
            )  # fmt: skip
            (digits if name == "fsdd" else other).append(clip)
    return digits, other


def phrases_of(texts: Sequence[str], rng: np.random.Generator, count: int) -> list[str]:
    """`count` phrases of two to six words from running texts."""
    phrases = []
    for _ in range(count):
        words = texts[int(rng.integers(len(texts)))].split()
        start = int(rng.integers(max(1, len(words) - 2)))
        phrases.append(" ".join(words[start : start + int(rng.integers(2, 7))]))
    return phrases


def usable(voices: Sequence[str]) -> list[str]:
    """Those of `voices` whose program is installed; a warning names the others."""
    missing = [voice for voice in voices if not installed(voice)]
    if missing:
        warnings.warn(
            f"training goes without the voices {', '.join(missing)}: their programs are not installed "
            "(Debian: flite; festival with festvox-kdlpc16k; of non-free libttspico-utils; rhvoice, rhvoice-english)",
            stacklevel=2,
        )
    return [voice for voice in voices if voice not in missing]


class Reader:
    """Says texts by many voices at random rates and pitches, as `PowerClip`s."""

    def __init__(self, front: StreamingLogMel, bins: int, seed: int):
        self.front, self.bins, self.rng = front, bins, np.random.default_rng(seed)

    def __call__(self, text: str, voice: str) -> PowerClip:
        pitched = voice != "flite:rms"  # it has one pitch
        rate, pitch = self.rng.uniform(0.72, 1.3), self.rng.uniform(0.75, 1.3)
        speech = synthesize(text, voice, rate=rate, pitch=pitch if pitched else 1.0)
        words = [(word.text, word.start, word.end) for word in speech.words]
        source = "synthetic-" + voice.split(":")[0]
        return clip_of(
            speech.samples[0], speech.sample_rate, self.front, self.bins, words, text=text, speaker=voice, source=source
        )

    def digits(self, voice: str, each: int) -> list[PowerClip]:
        """Every digit and "plus", `each` times."""
        return [self(word, voice) for word in (*DIGITS, "plus") for _ in range(each)]

    def accents(self, voice: str, each: int) -> list[PowerClip]:
        """Every digit and "plus" in `each` pronunciations at random, by a voice of espeak-ng."""
        chosen = [(word, self.rng.choice(PRONUNCIATIONS[word])) for word in (*DIGITS, "plus") for _ in range(each)]
        return [replace(self(f"[[{phones}]]", voice), text=word, words=()) for word, phones in chosen]

    def sums(self, voice: str, count: int) -> list[PowerClip]:
        """Sums as one sentence, where the engine tells when each word ends."""
        clips = []
        for _ in range(count):
            first, second = (DIGITS[self.rng.integers(10)] for _ in range(2))
            text = f"{first} plus {second}" if self.rng.random() < 0.75 else f"{first} {second}"
            clips.append(self(text, voice))
        return [clip for clip in clips if " ".join(word for word, _, _ in clip.words) == clip.text]

    def other(self, voice: str, texts: Sequence[str], words: int, phrases: int) -> list[PowerClip]:
        """Lone words, a third of them near to digits and a third from `texts`; phrases without numbers, half of them
        from `texts`, a quarter two words at random."""
        known = sorted({word for text in texts for word in text.split() if len(word) > 3})
        third = words // 3
        lone = [*self.rng.choice(OTHER_WORDS, words - 2 * third), *self.rng.choice(known or OTHER_WORDS, third)]
        lone += [*self.rng.choice(NEAR_WORDS, third)]
        several = [*self.rng.choice(OTHER_PHRASES, -(-phrases // 4))]
        several += [" ".join(self.rng.choice([*OTHER_WORDS, *NEAR_WORDS], 2)) for _ in range(phrases // 4)]
        several += phrases_of(texts, self.rng, phrases - len(several)) if texts else []
        chosen = [str(text) for text in (*lone, *several)]
        return [self(text, voice) for text in chosen if not set(text.split()) & SOUND_LIKE_NUMBERS]


def synthetic(
    front: StreamingLogMel, bins: int, texts: Sequence[str], seed: int = 0
) -> tuple[list[PowerClip], list[PowerClip], list[PowerClip]]:
    """(digits and "plus", whole sums, other words and phrases) by all voices.

    Phrases come from `texts` as well; what names a number, or sounds like one, is left out.
    """
    say = Reader(front, bins, seed)
    digits, sums, other = [], [], []
    timbres = TIMBRES[1:]
    for accent in ACCENTS:
        # All timbres are heard, each in some accents.
        for timbre in ("", *say.rng.choice(timbres, 20, replace=False)):
            voice = f"espeak:{accent}" + (f"+{timbre}" if timbre else "")
            digits += say.digits(voice, 2) + say.accents(voice, 3)
            sums += say.sums(voice, 14)
            other += say.other(voice, texts, 40, 12)
    for voice in usable(VOICES):
        digits += say.digits(voice, 10)
        sums += say.sums(voice, 0 if voice.startswith(("pico", "rhvoice")) else 80)  # they tell no word times
        other += say.other(voice, texts, 80, 50)
    for language in FOREIGN:
        for timbre in ("", *say.rng.choice(timbres, 3, replace=False)):
            other += say.other(f"espeak:{language}" + (f"+{timbre}" if timbre else ""), texts, 8, 14)
    return digits, sums, other


@lru_cache(maxsize=1)
def _synthetic(sample_rate: int, window: int, stride: int, bins: int, texts: tuple[str, ...], seed: int):
    """`synthetic`, kept for the next phase of the same training."""
    return synthetic(StreamingLogMel(sample_rate, window, stride), bins, texts, seed)


def build_bank(
    pack: Path,
    front: StreamingLogMel,
    bins: int,
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> ClipBank:
    """All clips for training: about 18,000; two minutes of work on one core, the most of it done once a process."""
    digits, other = recorded(pack, front, bins, leave_out)
    texts = tuple(clip.text for clip in other if len(clip.text.split()) > 3)
    more, sums, others = _synthetic(front.sample_rate, front.window, front.stride, bins, texts, seed)
    digits, other = digits + more, other + others
    words: dict[str, list[PowerClip]] = {word: [] for word in (*DIGITS, "plus")}
    for clip in digits:
        if clip.end > clip.start:
            words[clip.text].append(clip)
    return ClipBank(words, [clip for clip in other if len(clip.power) > 30], sums)
