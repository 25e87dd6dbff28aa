"""A corpus through one or more tokenizers into a token store: in batches, resumable, bad clips skipped and counted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivavoce.data.clips import Clip
from vivavoce.data.corpora import check_ids
from vivavoce.data.progress import progress
from vivavoce.data.store import TokenWriter
from vivavoce.data.tokens import StreamSpec, TokenRow, row_of
from vivavoce.errors import AudioError, RequestError
from vivavoce.tokenizers.fingerprint import fingerprint

_LONG = 60.0  # seconds: longer clips go through in pieces, so that memory does not grow with them
_PIECE = 10.0


@dataclass(frozen=True)
class Tokenized:
    """What a call has done: rows in the store, rows made now, hours made now, and the clips left out with reasons."""

    rows: int
    fresh: int
    hours: float
    skipped: tuple[tuple[str, str], ...]


def spec_of(tokenizer: Any, name: str) -> StreamSpec:
    """What a store has to know of a tokenizer: its codes' rates and sizes, or its frames' width.

    A tokenizer whose levels differ in rate says by `ratios` how many codes of each there are in a frame; it gives codes
    [B, levels, frames x largest ratio] in which -1 pads the slower levels.
    """
    common = {"tokenizer": name, "fingerprint": fingerprint(tokenizer), "sample_rate": tokenizer.sample_rate}
    if hasattr(tokenizer, "codebook_sizes"):
        sizes = tokenizer.codebook_sizes
        rates = tuple(float(tokenizer.frame_rate) * ratio for ratio in _ratios(tokenizer))
        return StreamSpec(rates=rates, size=int(max(sizes)), **common)
    return StreamSpec(rates=(float(tokenizer.frame_rate),), width=int(tokenizer.width), **common)


def _ratios(tokenizer: Any) -> tuple[int, ...]:
    """Codes of each level in a frame."""
    levels = len(tokenizer.codebook_sizes)
    return tuple(getattr(tokenizer, "ratios", None) or (1,) * levels)[:levels]


def tokenize(
    clips: Sequence[Clip],
    tokenizers: Mapping[str, Any],
    store: str | os.PathLike,
    names: Mapping[str, str] | None = None,
    batch_seconds: float = 60.0,
    rows_per_shard: int = 1000,
    quiet: bool = False,
) -> Tokenized:
    """Tokens of every clip for every stream (`tokenizers`: stream -> tokenizer), appended to `store` in corpus order.

    A recording with more channels than the tokenizer takes gives every channel its own codes. Clips in the store are
    passed over. `names` says what the tokenizers are called in the store; batches are of `batch_seconds` of audio,
    padded. A clip that cannot be read is skipped, counted and reported. Raises `DataError` as `TokenWriter` does.
    """
    specs = {stream: spec_of(t, (names or {}).get(stream, stream)) for stream, t in tokenizers.items()}
    check_ids(clips)
    writer = TokenWriter(store, specs, rows_per_shard)
    todo = [clip for clip in clips if clip.id not in writer.done]
    total, hours = (sum(clip.duration for clip in some) / 3600 for some in (clips, todo))
    skipped: list[tuple[str, str]] = []
    made, spent = 0, 0.0
    with progress("tokenize", total, "h", total - hours, quiet) as advance:
        for batch, rows in encoded(todo, tokenizers, skipped, batch_seconds):
            if rows:
                writer.add(rows)
            made, spent = made + len(rows), spent + sum(row.duration for row in rows) / 3600
            advance(sum(clip.duration for clip in batch) / 3600)
    writer.finish()
    return Tokenized(len(writer.done), made, spent, tuple(skipped))


def encoded(
    clips: Sequence[Clip], tokenizers: Mapping[str, Any], skipped: list[tuple[str, str]], batch_seconds: float = 60.0
) -> Iterator[tuple[list[Clip], list[TokenRow]]]:
    """The clips in batches, and the rows of each; what cannot be read goes to `skipped`."""
    for batch in _batches(clips, batch_seconds):
        yield batch, _encode(batch, tokenizers, skipped)


def _batches(clips: Sequence[Clip], seconds: float) -> Iterator[list[Clip]]:
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


def _encode(batch: list[Clip], tokenizers: Mapping[str, Any], skipped: list[tuple[str, str]]) -> list[TokenRow]:
    """The rows of a batch; unreadable clips go to `skipped`."""
    if batch[0].duration > _LONG and not batch[0].start and all(map(_streams, tokenizers.values())):
        try:
            return [row_of(batch[0], {name: _encode_long(batch[0], t) for name, t in tokenizers.items()})]
        except AudioError as error:
            skipped.append((batch[0].id, str(error)))
            return []
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


def _streams(tokenizer: Any) -> bool:
    """Whether it can encode in steps; one that hears whole signals only refuses a state."""
    try:
        return hasattr(tokenizer, "encoder_state") and tokenizer.encoder_state(1) is not None
    except RequestError:
        return False


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


def _levels(codes: np.ndarray, frames: int, tokenizer: Any) -> np.ndarray | list[np.ndarray]:
    """The first `frames` of codes [K, T]: [K, frames], or a list of levels where these differ in rate."""
    ratios = _ratios(tokenizer)
    if len(set(ratios)) == 1:
        return codes[:, : frames * ratios[0]]
    return [level[: frames * ratio] for level, ratio in zip(codes, ratios, strict=True)]


def _encode_rows(rows: list[np.ndarray], tokenizer: Any) -> list[Any]:
    """Waveforms [C, n] -> codes [K, T], a list of levels, or frames [T, D] of each, through one padded batch."""
    import torch

    lengths = torch.tensor([row.shape[1] for row in rows])
    wave = torch.zeros(len(rows), tokenizer.channels, int(lengths.max()))
    for index, row in enumerate(rows):
        wave[index, :, : row.shape[1]] = torch.from_numpy(np.ascontiguousarray(row))
    with torch.inference_mode():
        found = tokenizer.encode(wave, lengths=lengths)
    frames = [int(tokenizer.frames(int(length))) for length in lengths]
    if found.is_floating_point():
        return [found[i, :count].float().cpu().numpy() for i, count in enumerate(frames)]
    return [_levels(found[i].cpu().numpy(), count, tokenizer) for i, count in enumerate(frames)]


def _encode_long(clip: Clip, tokenizer: Any) -> list[Any]:
    """A long recording through the tokenizer's steps, ten seconds at a time; codes of each row as `_levels`."""
    import torch

    states: list[Any] = []
    pieces: list[list[Any]] = []

    def keep(index: int, codes: Any, state: Any) -> None:
        states[index] = state
        pieces[index].append(_levels(codes[0].cpu().numpy(), int(state.emitted[0]), tokenizer))

    with torch.inference_mode():
        for block in clip.blocks(_PIECE, tokenizer.sample_rate):
            rows = _rows(block.samples, tokenizer.channels)
            if not states:
                states, pieces = [tokenizer.encoder_state(1) for _ in rows], [[] for _ in rows]
            for index, row in enumerate(rows):
                keep(index, *tokenizer.encode_step(torch.from_numpy(np.ascontiguousarray(row))[None], states[index]))
        for index, state in enumerate(states):
            keep(index, *tokenizer.encode_flush(state))
    if isinstance(pieces[0][0], list):
        return [[np.concatenate(level) for level in zip(*some)] for some in pieces]
    return [np.concatenate(some, axis=1) for some in pieces]
