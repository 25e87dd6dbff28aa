"""Phases of a full-duplex system on recorded speech with words' times: what one says, what is heard, what is written.

    {kind: aligned_speech, corpora: […]}      one stream of speech with its text: pre-training
    {kind: dialogues, corpora: […]}           a channel for each speaker, or a recording that says who speaks when
    {kind: stereo_dialogues, path: DIR}       moshi-finetune's stereo wav and JSON

All are cut into windows; a text stands on the frame clock (`vivavoce.data.frame_text`). Sources: arXiv:2410.00037,
section 4 (random delay and masking of text in pre-training, one speaker against the rest after it); moshi-finetune.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivavoce.data.clips import Clip
from vivavoce.data.frame_text import CROWDED, LEFT_OUT, frame_text, pieces
from vivavoce.errors import DataError, RecipeError
from vivavoce.schema import Phase, Recipe
from vivavoce.systems import Model
from vivavoce.systems.duplex_system import DuplexSystem
from vivavoce.systems.token_system import Cells
from vivavoce.training.plan import Plan, expect, options_of, planned
from vivavoce.training.task import Task, step_seed
from vivavoce.training.token_plans import learner

SIDES = {"left": (0,), "right": (1,), "both": (0, 1)}
HELD_OUT = 32  # windows that are evaluated on, at most
Found = tuple[list[Clip], list[tuple[str, str]]]  # clips, and what was left out with the reason


@dataclass(frozen=True)
class Telling:
    """How windows become rows. seconds: of a window, at most. text_delay: seconds by which the text comes later than
    the sound, drawn between the two for every row. text_mask: the share of rows whose text is left out."""

    seconds: float
    text_delay: tuple[float, float]
    text_mask: float
    crowded: str
    sides: tuple[int, ...]
    alone: bool

    @property
    def plain(self) -> "Telling":
        """Without chance, as data are evaluated on."""
        return Telling(self.seconds, (0.0, 0.0), 0.0, self.crowded, self.sides, self.alone)


def aligned_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """One stream of speech with its text: all speakers of a recording in one channel."""
    from vivavoce.data.channels import mixed

    return _plan(recipe, phase, model, partial(_corpora, phase, make=lambda clip, turns: [mixed(clip)]), alone=True)


def dialogues_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """Two-channel recordings from both sides, and diarised ones once for each of their speakers."""
    from vivavoce.data.channels import apart

    return _plan(recipe, phase, model, partial(_corpora, phase, make=apart), sides="both", rttm=None)


def stereo_plan(recipe: Recipe, phase: Phase, model: Model) -> Plan:
    """Dialogues in moshi-finetune's format: the model's speaker left, the user right."""
    from vivavoce.data.stereo_dialogues import SPEAKER, read_stereo

    def read(places: Sequence[str], options: Mapping[str, Any], pack: Path | None) -> Found:
        found = [read_stereo(place, options["speaker"]) for place in places]
        return [clip for each in found for clip in each.clips], [bad for each in found for bad in each.skipped]

    return _plan(recipe, phase, model, read, places="path", speaker=SPEAKER)


def _corpora(
    phase: Phase, places: Sequence[str], options: Mapping[str, Any], pack: Path | None, make: Callable[..., list[Clip]]
) -> Found:
    """The clips of corpora, each as `make` has them."""
    from vivavoce.data.channels import turns_of
    from vivavoce.data.corpora import open_corpus
    from vivavoce.data.recordings import corpus_place
    from vivavoce.data.word_times import read_rttm

    diarised = read_rttm(options["rttm"]) if options.get("rttm") is not None else {}
    clips: list[Clip] = []
    skipped: list[tuple[str, str]] = []
    for name in places:
        corpus = open_corpus(corpus_place(name, pack))
        skipped += corpus.skipped
        for clip in corpus.clips:
            try:
                clips += make(clip, turns_of(clip, diarised))
            except DataError as error:
                skipped.append((clip.id, str(error)))
    return clips, skipped


def _plan(
    recipe: Recipe, phase: Phase, model: Model, read: Callable[..., Found], places: str = "corpora",
    alone: bool = False, **more: Any,
) -> Plan:
    """The plan of a phase whose clips `read(places, options, pack)` finds; more: options that this kind of data has."""
    where = f"training.{phase.name}.data"
    system = model.system
    if not isinstance(system, DuplexSystem) or system.interaction.writes is None:
        raise RecipeError(f"{where}: {phase.data.kind} train a full-duplex system that writes what it says")
    speaks, hears = system.interaction.speaks, system.interaction.hears
    codec = system.streams[speaks].tokenizer
    options = options_of(
        where, phase.data.options, store=None, held_out=None, seconds=100, text_delay=0, text_mask=0, crowded="push",
        seed=0, **{places: None}, **more,
    )  # fmt: skip
    telling = _telling(where, options, alone)
    if options[places] is None and options["store"] is None:
        raise RecipeError(f"{where}: give {places}, or a store that holds them")
    named, apart = (_places(where, options, name, places) for name in (places, "held_out"))
    store = None if options["store"] is None else expect(where, options, "store", "a text")
    seed = expect(where, options, "seed", "a number")
    rate = float(codec.frame_rate)
    if _rate(system, system.interaction.writes) != rate:
        raise RecipeError(f"{where}: '{system.interaction.writes}' has another clock than '{speaks}' ({rate:g} Hz)")
    if not alone and system.streams[hears].tokenizer is not codec:
        raise RecipeError(f"{where}: '{hears}' is not heard by the codec that speaks: both sides are tokenized by one")
    stage, learn = learner(recipe, phase, model)
    assert stage is system
    from vivavoce.training.token_task import streams_of

    needed = streams_of(system, list(phase.tasks or system.tasks))
    if alone and hears in needed:
        raise RecipeError(
            f"training.{phase.name}.tasks: aligned_speech is one stream of speech, without '{hears}': name a task "
            "that neither gives nor fills it"
        )
    roles = ((system.interaction.writes, "own"), (system.interaction.transcribes, "other"))
    texts = {name: role for name, role in roles if name in needed}

    def rows(some: Sequence[str] | None, folder: str | None, pack: Path | None) -> Any:
        from vivavoce.data.store import TokenStore
        from vivavoce.data.tokenize import tokenize
        from vivavoce.data.windows import in_memory, writable

        if some is not None:
            clips, skipped = read(some, options, pack)
            heard = set(telling.sides) | ({1 - side for side in telling.sides} if "other" in texts.values() else set())
            words = system.vocabularies[system.interaction.writes or ""]
            clips = writable(clips, heard if texts else (), partial(pieces, words), skipped)
            if clips and folder is None:
                found = in_memory(clips, codec, speaks, skipped)
            elif clips and folder is not None:
                skipped += tokenize(clips, {speaks: codec}, folder).skipped
            report(phase.name, skipped, len(clips))
            if not clips or (folder is None and not len(found)):
                why = f"; the first of {len(skipped)} skipped: {': '.join(skipped[0])}" if skipped else ""
                raise DataError(f"{where}: nothing to learn from in {', '.join(some)}{why}")
            if folder is None:
                return found
        return TokenStore(str(folder), {speaks: codec})

    def load(pack: Path | None) -> tuple[Any, ...]:
        source = rows(named, store, pack)
        held_out = None
        if apart is not None:
            aside = rows(apart, None if store is None else f"{store.rstrip('/')}-held-out", pack)
            held_out = partial(_held_out, system, aside, telling.plain, texts, needed, where)
        key = f"{phase.name}/{seed}"
        return Batches(system, source, telling, texts, needed, phase.batch, seed, key, where), held_out

    def make(cells: Any, held_out: Any) -> Task:
        return learn(cells, held_out=held_out)

    return planned(phase, make, (lambda number: None, None), load)


def report(name: str, skipped: Sequence[tuple[str, str]], kept: int) -> None:
    """Say on stderr what a phase does not learn from: the first ten, and how many."""
    for identity, why in skipped[:10]:
        print(f"{name}: skipped {identity}: {why}", file=sys.stderr, flush=True)
    if skipped:
        print(f"{name}: {len(skipped)} skipped, {kept} recordings to learn from", file=sys.stderr, flush=True)


def _rate(system: DuplexSystem, stream: str) -> float | None:
    return system.streams[stream].spec.rate


def _telling(where: str, options: Mapping[str, Any], alone: bool) -> Telling:
    seconds, mask, crowded = options["seconds"], options["text_mask"], options["crowded"]
    for name, value, most in (("seconds", seconds, 1e5), ("text_mask", mask, 1.0)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
            raise RecipeError(f"{where}.{name}: {value!r:.60}: a number from 0 to {most:g} is expected")
    if not seconds > 0:
        raise RecipeError(f"{where}.seconds: a window of {seconds} s: give a positive length")
    if crowded not in CROWDED:
        raise RecipeError(f"{where}.crowded: {crowded!r:.60} is none of {', '.join(CROWDED)}")
    delay = options["text_delay"]
    span = (delay, delay) if isinstance(delay, int | float) else tuple(delay) if isinstance(delay, list | tuple) else ()
    if len(span) != 2 or not all(isinstance(d, int | float) and abs(d) <= 60 for d in span) or span[0] > span[1]:
        raise RecipeError(f"{where}.text_delay: {delay!r:.60}: seconds, or a range of them such as [-0.6, 0.6]")
    side = "left" if alone else options.get("sides", "left")
    if side not in SIDES:
        raise RecipeError(f"{where}.sides: {side!r:.60} is none of {', '.join(SIDES)}")
    return Telling(float(seconds), (float(span[0]), float(span[1])), float(mask), crowded, SIDES[side], alone)


def _places(where: str, options: Mapping[str, Any], name: str, kind: str) -> list[str] | None:
    """One place or several, as a list; None where none is given."""
    if options[name] is None:
        return None
    if isinstance(options[name], str):
        return [options[name]]
    return list(expect(where, options, name, "a list"))


class Batches:
    """`batches(step)`: the cells of a step's windows, each once an epoch, with their chances drawn by the step."""

    def __init__(
        self, system: DuplexSystem, rows: Any, telling: Telling, texts: Mapping[str, str], needed: set[str], batch: int,
        seed: int, key: str, where: str,
    ):
        from vivavoce.data.buckets import Buckets

        self.system, self.telling, self.texts, self.needed = system, telling, texts, needed
        self.key, self.where = key, where
        self.windows = windows_of(system, rows, telling)
        self.buckets = Buckets(self.windows.lengths, batch * int(self.windows.lengths.max()), seed, batch)

    def __call__(self, step: int) -> Cells:
        """The cells of a batch; raises `DataError` for a row of a store that does not fit the system."""
        items = self.buckets.batch(step)
        chances = [np.random.default_rng(step_seed(self.key, step, row)) for row in range(len(items))]
        return cells_of(
            self.system, [self.windows[int(item)] for item in items], self.telling, self.texts, self.needed, chances,
            self.where,
        )


def windows_of(system: DuplexSystem, rows: Any, telling: Telling) -> Any:
    """Rows of a store, or in memory, as windows of as many frames as the seconds hold."""
    from vivavoce.data.windows import Windows

    speaks = system.interaction.speaks
    rate = float(_rate(system, speaks) or 0)
    frames = max(1, round(telling.seconds * rate))
    return Windows(rows, speaks, rate, frames, telling.sides, telling.alone)


def cells_of(
    system: DuplexSystem, windows: Sequence[Any], telling: Telling, texts: Mapping[str, str], needed: set[str],
    chances: Sequence[np.random.Generator], where: str,
) -> Cells:
    """A batch of windows as cells: codes of both sides, and the texts on the frame clock."""
    from vivavoce.training.token_task import with_ends

    rate = float(_rate(system, system.interaction.speaks) or 0)
    held: dict[str, list[np.ndarray]] = {}
    for window, chance in zip(windows, chances, strict=True):
        frames = window.codes.shape[1]
        delay, masked = float(chance.uniform(*telling.text_delay)), bool(chance.random() < telling.text_mask)
        held.setdefault(system.interaction.speaks, []).append(window.codes)
        if window.other is not None:
            held.setdefault(system.interaction.hears, []).append(window.other)
        for name, role in texts.items():
            words = window.words if role == "own" else window.other_words
            try:
                ids = frame_text(words, frames, rate, system.vocabularies[name], delay, telling.crowded)
            except DataError as error:
                raise DataError(f"{where}: utterance '{window.name}': {error}") from error
            held.setdefault(name, []).append((np.full_like(ids, LEFT_OUT) if masked else ids)[None])
    lengths = torch.tensor([window.codes.shape[1] for window in windows])
    streams: dict[str, torch.Tensor] = {}
    for name, each in held.items():
        streams[name] = torch.zeros(len(each), each[0].shape[0], int(lengths.max()), dtype=torch.int64)
        for row, codes in enumerate(each):
            streams[name][row, :, : codes.shape[1]] = torch.from_numpy(codes)
    mine = {name: codes for name, codes in streams.items() if name in needed}
    cells = with_ends(system, mine, dict.fromkeys(mine, lengths), where, needed)
    cells.names = tuple(window.name for window in windows)
    return cells


def _held_out(
    system: DuplexSystem, rows: Any, telling: Telling, texts: Mapping[str, str], needed: set[str], where: str,
    number: int,
) -> Cells:
    """Up to `HELD_OUT` windows of what is kept apart, evenly chosen, without chance."""
    windows = windows_of(system, rows, telling)
    some = [windows[int(i)] for i in range(0, len(windows), -(-len(windows) // HELD_OUT))]
    chances = [np.random.default_rng(0) for _ in some]
    return cells_of(system, some, telling, texts, needed, chances, where)
