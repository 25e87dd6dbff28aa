"""Checks of a token store: its rows, its streams, and whose tokens they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.data.progress import progress
from vivavoce.data.store import TokenStore
from vivavoce.data.tokens import StreamSpec, TokenRow
from vivavoce.doctor.findings import Finding, NotChecked, Report, check, examine, fault, look
from vivavoce.doctor.splits import Item, copies, is_apart, leaks, speakers_of
from vivavoce.errors import DataError, VivavoceError

ALIKE = 16  # changes of codes in a row: with fewer (silence, a handful of tokens) many rows are the same by chance
MOST = 100_000  # rows that are read where nobody says how many: of more, so many, evenly chosen
MILLION = 1_000_000  # ids that are compared in memory
ENOUGH = 100  # tokens for each entry of a codebook, before one that never occurs says anything


@dataclass
class ReadStore:
    """A store and what a pass over its rows has counted. tokenizers: stream -> the recipe's own, where one is known.

    histograms: stream -> occurrences of every id [levels, size]. Problems by what they are: lists of "id (how)".
    """

    store: TokenStore
    tokenizers: Mapping[str, Any]
    read: int = 0
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    uneven: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)
    unlicensed: list[str] = field(default_factory=list)

    def count(self, row: TokenRow, frames: Mapping[str, int]) -> None:
        """Look at one row; `frames`: what the store's index says of it."""
        self.read += 1
        if row.license.lower() in ("", "unknown", "none", "?"):
            self.unlicensed.append(row.id)
        digest, changes = hashlib.blake2b(digest_size=8), 0
        for name, spec in self.store.specs.items():
            lengths = set()
            for channel in row.streams[name]:
                length = self._channel(row.id, name, spec, channel)
                lengths.add(length)
                for level in channel:
                    digest.update(np.ascontiguousarray(level).tobytes())
                    changes += int(np.count_nonzero(np.diff(level, axis=0)))
            if not row.streams[name] or min(lengths, default=0) == 0:
                self.empty.append(f"{row.id}, stream '{name}'")
            elif len(lengths) > 1 or frames[name] not in lengths:
                self.uneven.append(f"{row.id}, stream '{name}': {sorted(lengths)} frames, {frames[name]} by the index")
            else:
                self._against_time(row, name, spec, frames[name])
        sign = int.from_bytes(digest.digest(), "big") if changes >= ALIKE else 0
        self.items.append(Item(row.id, is_apart(row.extra), speakers_of(*row.speaker), sign))

    def _channel(self, identity: str, name: str, spec: StreamSpec, channel: Any) -> int:
        """Count the codes of a channel; its frames."""
        if spec.width:
            if not np.isfinite(channel).all():
                self.infinite.append(f"{identity}, stream '{name}'")
            return len(channel)
        counts = self.histograms.setdefault(name, np.zeros((spec.levels, spec.size), np.int64))
        sizes = self.sizes(name)
        for level, codes in enumerate(channel):
            limit = min(spec.size, sizes[level])
            if codes.size and (codes.max() >= limit or codes.min() < 0):
                found = f"{codes.min()} to {codes.max()}"
                self.beyond.append(f"{identity}, stream '{name}', level {level}: {found} of {limit}")
            good = codes[(codes >= 0) & (codes < spec.size)]
            counts[level] += np.bincount(good, minlength=spec.size)[: spec.size]
        lengths = [len(codes) // ratio for codes, ratio in zip(channel, spec.ratios)]
        if len(set(lengths)) > 1 or len(lengths) != spec.levels:
            self.uneven.append(f"{identity}, stream '{name}': levels of {[len(codes) for codes in channel]} codes")
        return lengths[0] if lengths else 0

    def sizes(self, name: str) -> list[int]:
        """Entries of each level's codebook: a store knows the largest one's only, the tokenizer all."""
        spec, tokenizer = self.store.specs[name], self.tokenizers.get(name)
        whole = getattr(tokenizer, "codebook_size", spec.size)
        known = list(getattr(tokenizer, "codebook_sizes", None) or [whole])
        return [int(known[level]) if level < len(known) else int(whole) for level in range(spec.levels)]

    def _against_time(self, row: TokenRow, name: str, spec: StreamSpec, frames: int) -> None:
        """Whether a row's frames last as long as its audio: within two frames, an encoder's edge, and 2 %."""
        rate = spec.rates[0] / spec.ratios[0]
        if rate and abs(frames / rate - row.duration) > 0.1 + 2 / rate + 0.02 * row.duration:
            lasts = f"{frames / rate:.2f} s of tokens, {row.duration:.2f} s of audio"
            self.uneven.append(f"{row.id}, stream '{name}': {lasts}")


def look_at_store(
    place: str | Path,
    sample: int | None = None,
    tokenizers: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Report:
    """Check a token store; `sample`: read so many rows, evenly chosen (default: all, of more than a hundred thousand
    so many). tokenizers: stream -> the one whose tokens they
    should be. Raises as `TokenStore` does for what cannot be opened."""
    store = TokenStore(place)
    subject = ReadStore(store, tokenizers or {})
    numbers = np.arange(len(store))
    if (count := sample or MOST) < len(store):
        numbers = np.unique(np.linspace(0, len(store) - 1, count).round().astype(int))
    frames = {name: store.lengths(name) for name in store.specs}
    with progress("read", len(numbers), "rows", quiet=quiet) as advance:
        for number in numbers.tolist():
            try:
                subject.count(store[number], {name: int(lengths[number]) for name, lengths in frames.items()})
            except (VivavoceError, ValueError, TypeError, KeyError, IndexError) as error:
                subject.damaged.append(f"row {number}: {' '.join(str(error).split())}")
            advance(1)
    facts = [f"{len(store)} rows, {subject.read} read"]
    for name, spec in store.specs.items():
        what = f"frames of {spec.width}" if spec.width else f"{spec.levels} levels of up to {spec.size} codes"
        rate = ", ".join(f"{rate:g}" for rate in dict.fromkeys(spec.rates))
        facts.append(f"{name}: {what} at {rate} Hz, by {spec.tokenizer} ({spec.fingerprint})")
        for level, counts in enumerate(subject.histograms.get(name, ())):
            facts.append(f"{name}[{level}]: {_health(counts)}")
    return examine("store", subject, Report(str(place), "store", facts))


def _perplexity(counts: np.ndarray) -> float:
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))


def _health(counts: np.ndarray) -> str:
    used = int((counts > 0).sum())
    top = counts.max(initial=0) / max(counts.sum(), 1)
    return f"{counts.sum()} tokens, {used} of {len(counts)} codes used, perplexity {_perplexity(counts):.1f}, " \
           f"the commonest {top:.0%}"  # fmt: skip


@check("store")
def damaged(store: ReadStore) -> Iterator[Finding]:
    """Rows that cannot be read."""
    if store.damaged:
        yield fault(
            "rows that cannot be read: training stops at the first of them",
            "delete the shard that is named and its folder 'index', and call the same `vivavoce tokenize` again",
            store.damaged,
        )


@check("store")
def unfinished(store: ReadStore) -> Iterator[Finding]:
    """Rows that wait for their shard."""
    if waiting := sorted(store.store.folder.glob("pending-*.parquet")):
        yield look(
            "finished rows that are in no shard yet: a reader takes no notice of them",
            "call the same `vivavoce tokenize` again: it goes on to the end",
            (path.name for path in waiting),
        )


@check("store")
def row_ids(store: ReadStore) -> Iterator[Finding]:
    """Utterances that are there twice."""
    if len(store.store) > MILLION:
        raise NotChecked(f"{len(store.store)} ids: a million are compared at most")
    try:
        names = store.store.column("id")
    except DataError as error:
        raise NotChecked(str(error)) from error
    found, counts = np.unique(names.astype(str), return_counts=True)
    if (counts > 1).any():
        yield fault(
            "utterances that are in the store more than once",
            "tokenize anew into another folder: shards of two runs lie in this one",
            found[counts > 1],
        )


@check("store")
def zero_length(store: ReadStore) -> Iterator[Finding]:
    """Rows without a token."""
    if store.empty:
        yield fault(
            "rows with no tokens: batches leave them out",
            "leave their clips out (`vivavoce doctor` names short ones of a corpus) and tokenize anew",
            store.empty,
        )


@check("store")
def lengths(store: ReadStore) -> Iterator[Finding]:
    """Streams of one row that do not last equally long."""
    if store.uneven:
        yield fault(
            "rows whose streams, levels or channels differ in length, or that do not last as long as their audio",
            "all streams of a row are made of the same audio: tokenize anew",
            store.uneven,
        )


@check("store")
def code_range(store: ReadStore) -> Iterator[Finding]:
    """Codes that the codebook does not have."""
    if store.beyond:
        yield fault(
            "codes beyond their codebook",
            "they are another tokenizer's: tokenize the corpus with this one",
            store.beyond,
        )


@check("store")
def finite(store: ReadStore) -> Iterator[Finding]:
    """Frames with NaN."""
    if store.infinite:
        yield fault("frames that are NaN or infinite", "find the encoder's fault, tokenize anew", store.infinite)


@check("store")
def dead_codes(store: ReadStore) -> Iterator[Finding]:
    """Codebooks of which little is used: where there are tokens enough to tell."""
    dead, poor = [], []
    for name, levels in store.histograms.items():
        for level, counts in enumerate(levels):
            size, total = store.sizes(name)[level], int(counts.sum())
            used, spread = int((counts > 0).sum()), _perplexity(counts)
            if size < 4 or total < ENOUGH * size:
                continue
            if spread < max(1.5, 0.02 * size):
                poor.append(f"{name}[{level}]: perplexity {spread:.1f} of {size}")
            elif size - used > 0.1 * size:
                dead.append(f"{name}[{level}]: {size - used} of {size} codes never occur in {total} tokens")
    if poor:
        yield fault(
            "collapsed codebooks: nearly all tokens are the same few codes",
            "the tokenizer has collapsed, or hears silence: look at `perplexity` in its training's report",
            poor,
        )
    if dead:
        yield look(
            "dead codes: more than a tenth of a codebook is never used",
            "a smaller codebook does as well; k-means with `standardize: true`, or a quantizer with a larger "
            "`dead_ratio`, uses more",
            dead,
        )


@check("store")
def store_splits(store: ReadStore) -> Iterator[Finding]:
    """Speakers and recordings on both sides of a split."""
    if not {True, False} <= {item.apart for item in store.items}:
        raise NotChecked("no row is of a training part and another of a held-out one (field `split`)")
    yield from leaks(store.items, "rows")


@check("store")
def copied_rows(store: ReadStore) -> Iterator[Finding]:
    """Rows with the very same tokens."""
    yield from copies(store.items, "rows")


@check("store")
def store_licences(store: ReadStore) -> Iterator[Finding]:
    """Rows that say nothing of their licence."""
    if store.unlicensed:
        yield look(
            "rows without a licence: a model of them cannot be given away with a good conscience",
            "name it when you tokenize (`vivavoce tokenize --license …`)",
            store.unlicensed,
        )


@check("store")
def fingerprints(store: ReadStore) -> Iterator[Finding]:
    """Tokens of another tokenizer than the recipe's, or than the one that lies where theirs lay."""
    known = {name: made for name, made in store.tokenizers.items() if name in store.store.specs}
    if store.tokenizers and not known:
        wanted, there = ", ".join(store.tokenizers), ", ".join(store.store.specs)
        yield fault(
            f"none of the recipe's streams ({wanted}) is in the store ({there})",
            "name the streams as the recipe does when you tokenize: `vivavoce tokenize STREAM=MODEL …`",
        )
        return
    for name, spec in store.store.specs.items():
        if name not in known and Path(spec.tokenizer).exists():
            from vivavoce.systems import load_tokenizer

            known[name] = load_tokenizer(spec.tokenizer)
    if not known:
        raise NotChecked("no tokenizer to compare with: name a recipe or model (--recipe)")
    for name, tokenizer in known.items():
        try:
            TokenStore(store.store.folder, {name: tokenizer})
        except DataError as error:
            yield fault(str(error), "tokenize the corpus with the tokenizer that the model is to have", [name])
