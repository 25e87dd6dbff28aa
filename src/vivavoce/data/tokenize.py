"""A corpus through one or more tokenizers into a token store: in batches, resumable, bad clips skipped and counted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.audio import Resampler
from vivavoce.data.clips import Clip
from vivavoce.data.corpora import check_ids
from vivavoce.data.files import alone_in, made_folder
from vivavoce.data.progress import progress
from vivavoce.data.store import TokenWriter
from vivavoce.data.tokens import StreamSpec, TokenRow, row_of
from vivavoce.errors import AudioError, RequestError
from vivavoce.tokenizers.blocks import BlockEncoder, Coded, coded, joined, ratios_of
from vivavoce.tokenizers.fingerprint import fingerprint

# Batches of clips -> each with its rows, in order, and what was skipped of it: (id, reason)
Work = Callable[[Iterable[list[Clip]]], Iterator["Done"]]

_LONG = 60.0  # seconds: longer clips go through in pieces, so that memory does not grow with them
_PIECE = 10.0


@dataclass(frozen=True)
class Tokenized:
    """What a call has done: rows in the store, rows made now, hours made now in how many seconds, and the clips left
    out with reasons."""

    rows: int
    fresh: int
    hours: float
    skipped: tuple[tuple[str, str], ...]
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Hours of audio a second."""
        return self.hours / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Done:
    """A batch of clips, the rows of those that could be read, and (id, reason) of the others."""

    batch: list[Clip]
    rows: list[TokenRow]
    skipped: list[tuple[str, str]]


def spec_of(tokenizer: Any, name: str) -> StreamSpec:
    """What a store has to know of a tokenizer: its codes' rates and sizes, or its frames' width.

    A tokenizer whose levels differ in rate says by `ratios` how many codes of each there are in a frame; it gives codes
    [B, levels, frames x largest ratio] in which -1 pads the slower levels.
    """
    if not hasattr(tokenizer, "frame_rate"):
        raise RequestError(f"{name}: its codes belong to tokens of text, not to frames: a token store has no such rows")
    common = {"tokenizer": name, "fingerprint": fingerprint(tokenizer), "sample_rate": tokenizer.sample_rate}
    if hasattr(tokenizer, "codebook_sizes"):
        sizes = tokenizer.codebook_sizes
        rates = tuple(float(tokenizer.frame_rate) * ratio for ratio in ratios_of(tokenizer))
        return StreamSpec(rates=rates, size=int(max(sizes)), **common)
    return StreamSpec(rates=(float(tokenizer.frame_rate),), width=int(tokenizer.width), **common)


def tokenize(
    clips: Sequence[Clip],
    tokenizers: Mapping[str, Any],
    store: str | os.PathLike,
    names: Mapping[str, str] | None = None,
    batch_seconds: float = 60.0,
    rows_per_shard: int = 1000,
    quiet: bool = False,
    work: Work | None = None,
) -> Tokenized:
    """Tokens of every clip for every stream (`tokenizers`: stream -> tokenizer), appended to `store` in corpus order.

    A recording with more channels than the tokenizer takes gives every channel its own codes; it is read and decoded
    once for all tokenizers. Clips in the store are passed over; of several processes one writes, the others wait for it
    and find its rows. `names` says what the tokenizers are called in the
    store; batches are of `batch_seconds` of audio, padded. A clip that cannot be read is skipped, counted and reported.
    work: does the batches elsewhere (see `vivavoce.data.workers`). Raises `DataError` as `TokenWriter` does.
    """
    specs = {stream: spec_of(t, (names or {}).get(stream, stream)) for stream, t in tokenizers.items()}
    check_ids(clips)
    work = work or (lambda parts: (encode(part, tokenizers) for part in parts))
    with alone_in(made_folder(store)):
        writer = TokenWriter(store, specs, rows_per_shard)
        todo = [clip for clip in clips if clip.id not in writer.done]
        total, hours = (sum(clip.duration for clip in some) / 3600 for some in (clips, todo))
        skipped: list[tuple[str, str]] = []
        made, spent, begin = 0, 0.0, time.monotonic()
        with progress("tokenize", total, "h", total - hours, quiet) as advance:
            for done in work(batches(todo, batch_seconds)):
                if done.rows:
                    writer.add(done.rows)
                skipped += done.skipped
                made, spent = made + len(done.rows), spent + sum(row.duration for row in done.rows) / 3600
                advance(sum(clip.duration for clip in done.batch) / 3600)
        writer.finish()
    return Tokenized(len(writer.done), made, spent, tuple(skipped), time.monotonic() - begin)


def batches(clips: Sequence[Clip], seconds: float = 60.0) -> Iterator[list[Clip]]:
    """Neighbours whose padded length together is at most `seconds`; clips over a minute alone."""
    batch: list[Clip] = []
    longest = 0.0
    for clip in clips:
        widest = max(longest, clip.duration)
        alone = clip.duration > _LONG or (batch and batch[0].duration > _LONG)
        if batch and (alone or widest * (sum(c.channels for c in batch) + clip.channels) > seconds):
            yield batch
            batch, longest = [], 0.0
        batch.append(clip)
        longest = max(longest, clip.duration)
    if batch:
        yield batch


def encode(batch: list[Clip], tokenizers: Mapping[str, Any]) -> Done:
    """The rows of a batch, for every stream (`tokenizers`: stream -> tokenizer)."""
    skipped: list[tuple[str, str]] = []
    rows = _encode_long(batch[0], tokenizers, skipped) if _is_long(batch[0]) else _encode(batch, tokenizers, skipped)
    return Done(batch, rows, skipped)


def _is_long(clip: Clip) -> bool:
    return clip.duration > _LONG


def _encode(batch: list[Clip], tokenizers: Mapping[str, Any], skipped: list[tuple[str, str]]) -> list[TokenRow]:
    sound, waves = [], []
    for clip in batch:
        try:
            audio = clip.load()
            rates = {tokenizer.sample_rate for tokenizer in tokenizers.values()}
            at = {rate: audio.resample(rate).samples for rate in rates}
            for tokenizer in tokenizers.values():
                _check_length(clip, at[tokenizer.sample_rate], tokenizer)
            sound.append(clip)
            waves.append(at)
        except AudioError as error:
            skipped.append((clip.id, str(error)))
    if not sound:
        return []
    streams: list[dict[str, list[Any]]] = [{} for _ in sound]
    for name, tokenizer in tokenizers.items():
        # Rows are channels: one of mono tokenizers for each of a clip's, else the clip as a whole.
        owners, rows = [], []
        for index, at in enumerate(waves):
            for row in _rows(at[tokenizer.sample_rate], tokenizer.channels):
                owners.append(index)
                rows.append(row)
        for owner, codes in zip(owners, _encode_rows(rows, tokenizer), strict=True):
            streams[owner].setdefault(name, []).append(codes)
    return [row_of(clip, found) for clip, found in zip(sound, streams, strict=True)]


def _rows(samples: np.ndarray, channels: int) -> list[np.ndarray]:
    """Samples [C, n] as what a tokenizer of `channels` takes: itself, each channel alone, or mono repeated."""
    if samples.shape[0] == channels:
        return [samples]
    if channels == 1:
        return [samples[c : c + 1] for c in range(samples.shape[0])]
    if samples.shape[0] == 1:
        return [samples.repeat(channels, axis=0)]
    raise AudioError(f"{samples.shape[0]} channels, and the tokenizer takes {channels}")


def _check_length(clip: Clip, samples: np.ndarray, tokenizer: Any) -> None:
    if samples.shape[1] == 0 or int(tokenizer.frames(samples.shape[1])) == 0:
        raise AudioError(f"clip '{clip.id}': {samples.shape[1]} samples are too short for a frame of tokens")
    _rows(samples, tokenizer.channels)


def _kept(piece: Coded) -> Any:
    """As a row keeps it: codes [K, frames], a list of levels where these differ in rate, or frames [T, D]."""
    if piece.values is not None:
        return piece.values
    return piece.levels if len({len(level) for level in piece.levels}) > 1 else np.stack(piece.levels)


def _encode_rows(rows: list[np.ndarray], tokenizer: Any) -> list[Any]:
    """Waveforms [C, n] -> codes [K, T], a list of levels, or frames [T, D] of each, through one padded batch."""
    import torch

    lengths = torch.tensor([row.shape[1] for row in rows])
    wave = torch.zeros(len(rows), tokenizer.channels, int(lengths.max()))
    for index, row in enumerate(rows):
        wave[index, :, : row.shape[1]] = torch.from_numpy(np.ascontiguousarray(row))
    with torch.inference_mode():
        found = tokenizer.encode(wave, lengths=lengths)
    return [_kept(coded(found[i], int(tokenizer.frames(int(n))), tokenizer)) for i, n in enumerate(lengths)]


def _encode_long(clip: Clip, tokenizers: Mapping[str, Any], skipped: list[tuple[str, str]]) -> list[TokenRow]:
    """The row of a long recording, ten seconds at a time: read once, resampled once for each rate."""
    resamplers: dict[int, Resampler] = {}
    encoders: dict[str, list[BlockEncoder]] = {}
    pieces: dict[str, list[list[Coded]]] = {}

    def hear(rate: int, samples: np.ndarray) -> None:
        for name, tokenizer in tokenizers.items():
            if tokenizer.sample_rate != rate or not samples.shape[1]:
                continue
            rows = _rows(samples, tokenizer.channels)
            if name not in encoders:
                encoders[name], pieces[name] = [BlockEncoder(tokenizer) for _ in rows], [[] for _ in rows]
            for encoder, found, row in zip(encoders[name], pieces[name], rows, strict=True):
                piece = encoder.step(row)
                if piece is not None:
                    found.append(piece)

    try:
        for block in clip.blocks(_PIECE):
            for rate in {tokenizer.sample_rate for tokenizer in tokenizers.values()}:
                if rate not in resamplers:
                    resamplers[rate] = Resampler(block.sample_rate, rate, block.channels)
                hear(rate, resamplers[rate].step(block.samples))
        for rate, resampler in resamplers.items():
            hear(rate, resampler.flush())
        if len(encoders) < len(tokenizers):
            raise AudioError(f"clip '{clip.id}': no samples")
    except AudioError as error:
        skipped.append((clip.id, str(error)))
        return []
    streams = {
        name: [_kept(joined([*found, encoder.flush()])) for encoder, found in zip(some, pieces[name], strict=True)]
        for name, some in encoders.items()
    }
    return [row_of(clip, streams)]
