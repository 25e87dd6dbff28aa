"""Any tokenizer over a signal of any length, a block at a time: joined, the blocks are what the whole gives.

Memory does not grow with the signal where the tokenizer streams (`encoder_state`; a codec that hears whole signals does
so in pieces) or cuts the signal itself into chunks (`ChunkedCodec`). One without steps is given the whole at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.codecs.chunked import ChunkedCodec
from vivavoce.errors import RequestError


@dataclass(frozen=True)
class Coded:
    """Some frames: `levels`, int64 [frames x ratio] of each level, or `values` [frames, width] of a continuous stream;
    `scales` of the chunks that end in them, of a codec that normalises."""

    frames: int
    levels: list[np.ndarray] = field(default_factory=list)
    values: np.ndarray | None = None
    scales: list[float] = field(default_factory=list)

    @property
    def codes(self) -> np.ndarray:
        """[levels, frames x the largest ratio], -1 behind the slower levels: what `decode` takes."""
        if not self.levels:
            raise RequestError("codes without a level")
        most = max(map(len, self.levels))
        rows = [np.pad(level, (0, most - len(level)), constant_values=-1) for level in self.levels]
        return np.stack(rows)


def ratios_of(tokenizer: Any) -> list[int]:
    """Codes of each level in a frame: one, but where levels differ in rate."""
    levels = len(tokenizer.codebook_sizes)
    return list(getattr(tokenizer, "ratios", None) or [1] * levels)[:levels]


def coded(found: Tensor, frames: int, tokenizer: Any) -> Coded:
    """The first `frames` of one row that a tokenizer gave: codes [K, T], or values [T, D]."""
    if found.is_floating_point():
        return Coded(frames, values=found[:frames].float().cpu().numpy())
    codes = found.cpu().numpy().astype(np.int64, copy=False)
    return Coded(frames, [level[: frames * ratio] for level, ratio in zip(codes, ratios_of(tokenizer), strict=True)])


def joined(pieces: list[Coded]) -> Coded:
    """Pieces one after another, at least one."""
    frames, scales = sum(piece.frames for piece in pieces), [scale for piece in pieces for scale in piece.scales]
    if pieces[0].values is not None:
        return Coded(frames, values=np.concatenate([piece.values for piece in pieces if piece.values is not None]))
    levels = [np.concatenate(level) for level in zip(*(piece.levels for piece in pieces), strict=True)]
    return Coded(frames, levels, scales=scales)


def in_blocks(piece: Coded, frames: int) -> list[Coded]:
    """A piece in parts of at most so many frames; whole where it has scales."""
    if piece.scales or piece.frames <= frames:
        return [piece]
    ratios = [len(level) // piece.frames for level in piece.levels]
    found = []
    for start in range(0, piece.frames, frames):
        end = min(start + frames, piece.frames)
        found.append(Coded(end - start, [level[start * r : end * r] for level, r in zip(piece.levels, ratios)]))
    return found


class BlockEncoder:
    """A tokenizer over one signal: `step` for each block, `flush` at its end."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._chunks = tokenizer if isinstance(tokenizer, ChunkedCodec) else None
        self._state = None if self._chunks is not None else _state(tokenizer, "encoder_state")
        self._kept: list[np.ndarray] = []  # of what hears chunks or whole signals: what it has not heard

    @property
    def bounded(self) -> bool:
        """Whether memory does not grow with the signal."""
        return self._chunks is not None or self._state is not None

    @torch.inference_mode()
    def step(self, samples: np.ndarray) -> Coded | None:
        """The next samples [channels, n] -> the frames that they complete; None: nothing yet."""
        if self._state is None:
            self._kept.append(samples)
            return None if self._chunks is None else self._whole_chunks()
        wave = torch.from_numpy(np.ascontiguousarray(samples))[None]
        codes, self._state = self.tokenizer.encode_step(wave, self._state)
        return coded(codes[0], int(self._state.emitted[0]), self.tokenizer)

    @torch.inference_mode()
    def flush(self) -> Coded:
        """The end of the signal -> the rest."""
        if self._state is not None:
            codes, self._state = self.tokenizer.encode_flush(self._state)
            return coded(codes[0], int(self._state.emitted[0]), self.tokenizer)
        wave = torch.from_numpy(np.concatenate(self._kept, axis=1))[None]
        self._kept = []
        if self._chunks is None:
            found = self.tokenizer.encode(wave)[0]
            most = 1 if found.is_floating_point() else max(ratios_of(self.tokenizer))
            return coded(found, found.shape[0 if found.is_floating_point() else 1] // most, self.tokenizer)
        return self._in_chunks(wave, self._chunks.chunks(wave.shape[2]))

    def _whole_chunks(self) -> Coded | None:
        """Of the chunks that are full."""
        codec = self._chunks
        assert codec is not None
        there = sum(block.shape[1] for block in self._kept)
        if there < codec.chunk:
            return None
        heard = np.concatenate(self._kept, axis=1)
        places = [place for place in codec.chunks(there) if place[1] == codec.chunk]
        self._kept = [heard[:, places[-1][0] + codec.stride :]]
        return self._in_chunks(torch.from_numpy(heard)[None], places)

    def _in_chunks(self, wave: Tensor, places: list[tuple[int, int]]) -> Coded:
        codec, found = self._chunks, []
        assert codec is not None
        for start, length in places:
            codes, scales = codec.encode_chunks(wave[..., start : start + length])
            part = coded(codes[0], codes.shape[2], codec)
            found.append(Coded(part.frames, part.levels, scales=scales.tolist()))
        return joined(found) if found else Coded(0, [np.zeros(0, np.int64)] * codec.codebooks)


class BlockDecoder:
    """A tokenizer's way back for one signal of `samples` in all (None: as many as there will be)."""

    def __init__(self, tokenizer: Any, samples: int | None = None):
        self.tokenizer, self.samples = tokenizer, samples
        self._chunks = tokenizer if isinstance(tokenizer, ChunkedCodec) else None
        self._state = None if self._chunks is not None else _state(tokenizer, "decoder_state")
        self._kept: list[Coded] = []
        self.said = 0  # samples so far
        self._start = 0  # of the next chunk
        self._tail = torch.zeros(tokenizer.channels + 1, 0)  # weighted sound from there on, and the weights' sum

    @torch.inference_mode()
    def step(self, piece: Coded) -> np.ndarray:
        """The next frames -> samples [channels, n], n may be 0."""
        if self._state is not None:
            if not piece.frames:
                return self._silence(0)
            codes = torch.from_numpy(piece.codes)[None]
            wave, self._state = self.tokenizer.decode_step(codes, self._state)
            return self._cut(wave[0, :, : int(self._state.emitted[0])])
        self._kept.append(piece)
        return self._silence(0) if self._chunks is None else self._cut(self._whole_chunks())

    @torch.inference_mode()
    def flush(self, fill: bool = True) -> np.ndarray:
        """The end -> the rest; `fill`: so that there are `samples` in all, silent where no frame tells of them."""
        if self._state is not None:
            wave, self._state = self.tokenizer.decode_flush(self._state)
            rest = self._cut(wave[0, :, : int(self._state.emitted[0])])
        elif self._chunks is not None:
            rest = self._cut(torch.cat([self._whole_chunks(), self._faded(self._tail)], dim=1))
        elif sum(piece.frames for piece in self._kept):
            codes = torch.from_numpy(joined(self._kept).codes)[None]
            rest = self._cut(self.tokenizer.decode(codes)[0])
        else:
            rest = self._silence(0)
        missing = 0 if self.samples is None or not fill else self.samples - self.said
        self.said += missing
        return np.concatenate([rest, self._silence(missing)], axis=1)

    def _whole_chunks(self) -> Tensor:
        """The sound that no later chunk changes, of all chunks whose frames are there: [channels, n]."""
        codec = self._chunks
        assert codec is not None
        out, there = [torch.zeros(codec.channels, 0)], joined(self._kept)
        while there.frames:
            length = codec.chunk if self.samples is None else min(codec.chunk, self.samples - self._start)
            count = -(-length // codec.hop)
            if length <= 0 or there.frames < count:
                break
            codes = torch.from_numpy(np.stack([level[:count] for level in there.levels]))[None]
            sound = codec.decode_chunks(codes, torch.tensor(there.scales[:1]) if there.scales else None)[0].cpu()
            fade = codec.fade(codec.chunk if self.samples is None else self.samples)[: sound.shape[1]]
            both, tail = torch.cat([sound * fade, fade[None]]), self._tail
            both[:, : tail.shape[1]] += tail[:, : both.shape[1]]
            both = torch.cat([both, tail[:, both.shape[1] :]], dim=1)
            out.append(self._faded(both[:, : codec.stride]))
            self._tail, self._start = both[:, codec.stride :], self._start + codec.stride
            there = Coded(there.frames - count, [level[count:] for level in there.levels], scales=there.scales[1:])
        self._kept = [there]
        return torch.cat(out, dim=1)

    @staticmethod
    def _faded(both: Tensor) -> Tensor:
        return both[:-1] / both[-1:].clamp(min=1e-20)

    def _cut(self, wave: Tensor) -> np.ndarray:
        left = wave.shape[1] if self.samples is None else max(0, self.samples - self.said)
        found = wave[:, :left].float().cpu().numpy()
        self.said += found.shape[1]
        return found

    def _silence(self, samples: int) -> np.ndarray:
        return np.zeros((self.tokenizer.channels, max(0, samples)), np.float32)


def _state(tokenizer: Any, name: str) -> Any:
    """What it begins with, of one row; None where it hears whole signals only."""
    try:
        return getattr(tokenizer, name)(1) if hasattr(tokenizer, name) else None
    except RequestError:
        return None
