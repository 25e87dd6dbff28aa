"""Codes coded by how likely a language model finds each of them, and fine codes that are predicted and not sent.

What a model computes differs in its last bits with the machine, the number of threads and the shape of a batch, and one
bit is enough to lose all that follows. So writer and reader compute alike: on the CPU, in float64, one frame of one
signal after another, whatever the codec runs in; probabilities become whole numbers that sum to 2^16 before they are
used; and a checksum of the codes tells where the numbers have come out differently all the same.
"""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vivavoce.codecs.code_lm import CodeLM, CodeModels
from vivavoce.errors import DataError
from vivavoce.tokenizers.blocks import Coded
from vivavoce.tokenizers.entropy import TOTAL, range_coder


def whole_shares(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities float64 [size] as shares of 2^16, none of them 0, float64 (exact)."""
    found = 1 + np.floor(probabilities * (TOTAL - len(probabilities))).astype(np.int64)
    found[int(probabilities.argmax())] += TOTAL - int(found.sum())
    return found.astype(np.float64) / TOTAL


class Frames:
    """A model that walks over frames, one at a time: `chances(level, lower)` of the present one, then `add(codes)`."""

    def __init__(self, model: CodeLM, levels: int):
        self.model, self.levels = model, levels
        self.past, self.count = model.begin(), 0
        self.hidden = self._heard(torch.zeros(1, levels, 1, dtype=torch.int64))

    def _heard(self, before: Tensor) -> Tensor:
        hidden, self.past = self.model.step(before, self.past, self.count)
        self.count += 1
        return hidden

    def chances(self, level: int, lower: list[int]) -> np.ndarray:
        """Probabilities float64 [size] of a level, given those of the frame's levels below it."""
        rows = [torch.tensor([[code]]) for code in lower]
        return self.model.logits(self.hidden, level, rows)[0, 0].double().softmax(-1).numpy()

    def add(self, codes: list[int]) -> None:
        """All codes of the present frame; the next one begins."""
        self.hidden = self._heard(1 + torch.tensor(codes)[None, :, None])


class CodeCoder:
    """Codes of the first levels that a model knows <-> bytes; each call begins anew."""

    def __init__(self, model: CodeLM, levels: int):
        if not 1 <= levels <= len(model.sizes):
            raise DataError(f"{levels} codebooks, and the model of the codes knows {len(model.sizes)}")
        self.model, self.levels = copy.deepcopy(model).cpu().double().eval(), levels

    def _shares(self) -> Iterator[tuple[int, Frames, list[int]]]:
        """For ever: a level, the model at its frame and the codes below it, to which the level's own is then added."""
        frames = Frames(self.model, self.levels)
        while True:
            codes: list[int] = []
            for level in range(self.levels):
                yield level, frames, codes
            frames.add(codes)

    @torch.inference_mode()
    def encode(self, levels: list[np.ndarray]) -> bytes:
        """Codes [frames] of each level -> bytes: a CRC-32 of the codes, then what the range coder gives."""
        codes = np.stack(levels, axis=1).astype("<i4")
        coder = range_coder().stream.queue.RangeEncoder()
        for code, (level, frames, below) in zip(codes.ravel().tolist(), self._shares()):
            coder.encode(code, self._model(frames.chances(level, below)))
            below.append(code)
        return struct.pack("<I", zlib.crc32(codes.tobytes())) + coder.get_compressed().astype("<u4").tobytes()

    @torch.inference_mode()
    def decode(self, content: bytes, count: int) -> list[np.ndarray]:
        """Bytes -> codes int64 [count] of each level; `DataError` where they are not those that were written."""
        if len(content) < 4 or len(content) % 4:
            raise DataError(f"{len(content)} bytes are no words of codes")
        coder = range_coder().stream.queue.RangeDecoder(np.frombuffer(content[4:], "<u4").astype(np.uint32))
        found = []
        try:
            for _, (level, frames, below) in zip(range(count * self.levels), self._shares()):
                below.append(int(coder.decode(self._model(frames.chances(level, below)))))
                found.append(below[-1])
        except (AssertionError, ValueError) as error:
            raise DataError(f"codes that the model cannot have made: {error}") from error
        codes = np.array(found, "<i4").reshape(count, self.levels)
        if zlib.crc32(codes.tobytes()) != int.from_bytes(content[:4], "little"):
            raise DataError("the model of the codes computes other chances here than where they were written")
        return list(codes.T.astype(np.int64))

    @staticmethod
    def _model(chances: np.ndarray) -> Any:
        return range_coder().stream.model.Categorical(whole_shares(chances), perfect=False)


class FineCodes:
    """Frames of coarse codes with the fine ones drawn behind them (LMCodec), always the same of the same codes."""

    def __init__(self, models: CodeModels, seed: int = 0):
        assert models.fine is not None and models.coarse is not None
        self.model, self.coarse = copy.deepcopy(models.fine).cpu().eval(), models.coarse
        self.chance = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            self.frames = Frames(self.model, len(self.model.sizes))

    @torch.inference_mode()
    def step(self, block: Coded) -> Coded:
        """A block with all levels; the blocks of a recording follow one another."""
        found = []
        for sent in zip(*(level.tolist() for level in block.levels), strict=True):
            codes = list(sent)
            for level in range(self.coarse, len(self.model.sizes)):
                chances = torch.from_numpy(self.frames.chances(level, codes))
                codes.append(int(torch.multinomial(chances, 1, generator=self.chance)))
            self.frames.add(codes)
            found.append(codes)
        return Coded(block.frames, list(np.array(found, np.int64).reshape(block.frames, -1).T), scales=block.scales)
