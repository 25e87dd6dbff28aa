"""Codes of one recording in a compact file, a block of some seconds after another; written and read as a stream.

Layout (all numbers little-endian): `VVC2`; the header: its length (uint32), UTF-8 JSON, CRC-32 (uint32); then blocks:
frames, scales, bytes of the payload (uint32 each), CRC-32 of these three, the scales and the payload; the scales
(float32), the payload. It holds level after level: with ceil(log2(size)) bits a code, most significant first, padded to
a whole byte at the end; or, where the header has a `model` for the level, entropy-coded (see `entropy`), each such
level with its number of bytes (uint32) before it; or, where the header names an `lm`, all levels together as a language
model finds them likely (see `code_coder`), which begins anew with each block.

What the header says of samples and frames is known when a recording ends: a file that is cut says how much is missing.
A damaged block is known by its CRC, and those behind it can be read.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO

import numpy as np
from pydantic import Field

from vivavoce.errors import DataError
from vivavoce.schema.arguments import Count, Positive, arguments_of
from vivavoce.tokenizers.blocks import Coded, joined
from vivavoce.tokenizers.code_coder import CodeCoder
from vivavoce.tokenizers.entropy import MOST_CODES, Table

MAGIC, OLDER = b"VVC2", b"VVC1"
MOST_HEADER = 1 << 26  # bytes
MOST_FRAMES = 1 << 20  # of a block: a reader's memory
Size = Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True)
class CodesHeader:
    """What a decoder must know: the tokenizer and its fingerprint, the waveform's rate and length, codebook sizes;
    where levels differ in rate, how many codes of each a frame has (`ratios`); whether each chunk was divided by a
    scale (`scaled`); of each level that is entropy-coded how often its codes are (`model`, as `Table.plain` has it), or
    the digest of the language model that codes all of them (`lm`).
    """

    tokenizer: str
    fingerprint: str
    sample_rate: Positive
    samples: Count
    frames: Count
    sizes: Annotated[list[Size], Field(min_length=1, max_length=1024)]
    ratios: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=1)] | None = None
    scaled: bool = False
    model: list[str | None] | None = None
    lm: str | None = None

    @property
    def counts(self) -> list[int]:
        """Codes of each level in a frame."""
        return self.ratios or [1] * len(self.sizes)


def code_bits(size: int) -> int:
    """Bits of one code of a codebook with `size` entries."""
    return max(1, (size - 1).bit_length())


def pack(
    levels: list[np.ndarray], header: CodesHeader, tables: list[Table | None], coder: CodeCoder | None = None
) -> bytes:
    """A block's payload for the codes of each level; raises `DataError` for codes outside their codebook."""
    found = []
    plain: list[np.ndarray] = []
    for number, (level, size, table) in enumerate(zip(levels, header.sizes, tables, strict=True)):
        if level.size and not (level.min() >= 0 and level.max() < size):
            raise DataError(f"codebook {number}: codes {level.min()} to {level.max()}, but it has {size} entries")
        if coder is not None:
            continue
        if table is not None:
            coded = table.encode(level)
            found.append(struct.pack("<I", len(coded)) + coded)
            continue
        shifts = np.arange(code_bits(size))[::-1]
        plain.append((level.astype(np.int64)[:, None] >> shifts & 1).astype(np.uint8).ravel())
    if coder is not None:
        return coder.encode(levels)
    bits = np.packbits(np.concatenate(plain)).tobytes() if plain else b""
    return b"".join(found) + bits


def unpack(
    payload: bytes, frames: int, header: CodesHeader, tables: list[Table | None], coder: CodeCoder | None = None
) -> list[np.ndarray]:
    """The codes of each level, int64 [frames x ratio]; raises `DataError` where they are not those of a block."""
    if coder is not None:
        return coder.decode(payload, frames)
    levels: list[np.ndarray | None] = []
    at = 0
    for count, table in zip(header.counts, tables, strict=True):
        if table is None:
            levels.append(None)
            continue
        size = int.from_bytes(payload[at : at + 4], "little")
        levels.append(table.decode(payload[at + 4 : at + 4 + size], frames * count))
        at += 4 + size
    widths = [code_bits(size) for size in header.sizes]
    places = [n for n, level in enumerate(levels) if level is None]
    total = sum(widths[n] * header.counts[n] * frames for n in places)
    if len(payload) - at != -(-total // 8):
        raise DataError(f"{len(payload)} bytes for {frames} frames")
    bits, begin = np.unpackbits(np.frombuffer(payload, np.uint8, offset=at)), 0
    for n in places:
        count = frames * header.counts[n]
        block = bits[begin : begin + widths[n] * count].reshape(count, widths[n]).astype(np.int64)
        levels[n] = block @ (1 << np.arange(widths[n])[::-1])
        begin += widths[n] * count
    found = [level for level in levels if level is not None]
    for number, (level, size) in enumerate(zip(found, header.sizes, strict=True)):
        if level.size and level.max() >= size:
            raise DataError(f"codebook {number} has {size} entries, the codes have {level.max()}")
    return found


def _header_bytes(header: CodesHeader, room: int = 0) -> bytes:
    fields = {name: value for name, value in asdict(header).items() if value is not None}
    text = json.dumps(fields).encode()
    text += b" " * max(0, room - len(text))
    return MAGIC + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))


class CodesWriter:
    """Write codes to an open file that can be sought in; `header` without samples and frames, which `finish` adds.

    coder: of the language model that the header names."""

    def __init__(self, file: IO[bytes], header: CodesHeader, coder: CodeCoder | None = None):
        self.coder = coder
        self.file, self.header, self.frames = file, replace(header, samples=0, frames=0), 0
        self.tables = tables_of(header, "codes")
        longest = replace(self.header, samples=2**53, frames=2**53)
        self._room = len(_header_bytes(longest)) - 12
        self._start = file.tell()
        file.write(_header_bytes(self.header, self._room))

    def add(self, block: Coded) -> None:
        """Frames as a block of their own. Raises `DataError` for codes outside their codebook."""
        if [len(level) for level in block.levels] != [block.frames * count for count in self.header.counts]:
            raise DataError(f"codes of {[len(level) for level in block.levels]} for {block.frames} frames")
        if not block.frames:
            return
        payload = pack(block.levels, self.header, self.tables, self.coder)
        scales = np.asarray(block.scales, "<f4").tobytes()
        about = struct.pack("<III", block.frames, len(block.scales), len(payload))
        crc = zlib.crc32(about + scales + payload)
        self.file.write(about + struct.pack("<I", crc) + scales + payload)
        self.frames += block.frames

    def finish(self, samples: int) -> int:
        """The recording has so many samples: the header is complete. Returns the bytes of the file."""
        self.header = replace(self.header, samples=samples, frames=self.frames)
        end = self.file.tell()
        self.file.seek(self._start)
        self.file.write(_header_bytes(self.header, self._room))
        self.file.seek(end)
        return end - self._start


def entropy_coded(source: str | os.PathLike, file: IO[bytes]) -> int:
    """Write a whole file of codes again with entropy coding, of those levels that it makes shorter; the bytes written.

    It is read twice, once to count how often each code occurs."""
    reader = CodesReader(source)
    counts = [np.zeros(size, np.int64) if 2 <= size <= MOST_CODES else None for size in reader.header.sizes]
    for block in reader:
        for count, level in zip(counts, block.levels, strict=True):
            if count is not None:
                count += np.bincount(level, minlength=len(count))
    model: list[str | None] = []
    for count in counts:
        table = None if count is None else Table.counted(count)
        if count is None or table is None:
            model.append(None)
            continue
        cost = table.bits(count) + 8 * len(table.plain) + 64 * (1 + reader.header.frames // 1024)
        model.append(table.plain if cost < code_bits(len(count)) * int(count.sum()) else None)
    writer = CodesWriter(file, replace(reader.header, model=model if any(model) else None))
    for block in reader:
        writer.add(block)
    return writer.finish(reader.header.samples)


@dataclass
class Damage:
    """What of a file could not be read: `found`, a sentence for each damaged place; `cut`, one for a missing end."""

    found: list[str] = field(default_factory=list)
    cut: str = ""


class CodesReader:
    """Read codes block by block, with memory for one. `header` is there at once; iteration gives the blocks.

    Raises `DataError` for anything but a file of this kind, and, unless a `damage` is given to write it into, for
    blocks that are damaged or missing; with it, a damaged block is given as frames of code 0, and what is cut off ends
    the iteration. `coder`: of the language model that the header names, set before the blocks are read.
    """

    coder: CodeCoder | None = None

    def __init__(self, path: str | os.PathLike, damage: Damage | None = None):
        self.path, self.damage = Path(path), damage
        if not self.path.is_file():
            raise DataError(f"{path}: no such file")
        with self.path.open("rb") as file:
            self.header = _read_header(file, str(path))
            self._begin = file.tell()
        self.tables = tables_of(self.header, str(path))

    def __iter__(self) -> Iterator[Coded]:
        if self.header.lm is not None and self.coder is None:
            raise DataError(f"{self.path}: its codes are coded by a language model ({self.header.lm}), which is needed")
        frames, total = 0, self.header.frames
        self._lost = -1  # from where on nothing can be found
        with self.path.open("rb") as file:
            file.seek(self._begin)
            while frames < total:
                try:
                    block = self._block(file, total - frames)
                except DataError as error:
                    self._lost = frames
                    self._tell(f"{self.path}: damaged from frame {frames} ({self._time(frames)}): {error}")
                    break
                if block is None:
                    break
                count, scales, payload, whole = block
                if whole:
                    try:
                        yield Coded(count, unpack(payload, count, self.header, self.tables, self.coder), scales=scales)
                    except DataError as error:
                        whole = False
                        reason = f": {error}"
                else:
                    reason = ""
                if not whole:
                    span = f"frames {frames} to {frames + count - 1} ({self._time(frames)} to "
                    self._tell(f"{self.path}: damaged in {span}{self._time(frames + count)}){reason}")
                    silent = [np.zeros(count * each, np.int64) for each in self.header.counts]
                    yield Coded(count, silent, scales=[0.0] * len(scales))
                frames += count
        if frames < total and not (self.damage is not None and self.damage.found and frames == self._lost):
            missing = f"{frames} of {total} frames ({self._time(frames)} of {self._time(total)})"
            said = f"{self.path}: cut short: {missing}"
            if self.damage is None:
                raise DataError(said)
            self.damage.cut = said

    def _block(self, file: BinaryIO, left: int) -> tuple[int, list[float], bytes, bool] | None:
        """Frames, scales, payload of the next block, and whether they are whole; None where the file is cut."""
        about = file.read(16)
        if len(about) < 16:
            return None
        frames, scales, size, crc = struct.unpack("<IIII", about)
        most = 64 * len(self.tables) + 4 * frames * sum(self.header.counts)  # bytes: no code takes more than 32 bits
        if not 1 <= frames <= min(left, MOST_FRAMES) or scales > frames or size > most:
            raise DataError("no block begins there, so that what follows cannot be found")
        rest = file.read(4 * scales + size)
        if len(rest) < 4 * scales + size:
            return None
        values = np.frombuffer(rest, "<f4", scales)
        whole = zlib.crc32(about[:12] + rest) == crc and bool(np.isfinite(values).all())
        return frames, values.tolist(), rest[4 * scales :], whole

    def _tell(self, what: str) -> None:
        if self.damage is None:
            raise DataError(what)
        self.damage.found.append(what)

    def _time(self, frames: int) -> str:
        return f"{frames * self.header.samples / max(1, self.header.frames) / self.header.sample_rate:.2f} s"


def read_codes(path: str | os.PathLike) -> tuple[np.ndarray, CodesHeader]:
    """All codes of a file, int64 [levels, frames x the largest ratio], -1 behind those of slower levels; its header."""
    reader = CodesReader(path)
    blocks = list(reader)
    nothing = Coded(0, [np.zeros(0, np.int64) for _ in reader.header.sizes])
    return joined(blocks or [nothing]).codes, reader.header


def _read_header(file: BinaryIO, name: str) -> CodesHeader:
    start = file.read(8)
    if start[:4] == OLDER:
        raise DataError(f"{name}: of an older version ({OLDER.decode()}); encode again")
    if start[:4] != MAGIC:
        raise DataError(
            f"{name}: not a file of codes (it does not begin with {MAGIC.decode()}); 'vivavoce encode' makes one"
        )
    size = int.from_bytes(start[4:], "little")
    text = file.read(size) if size <= MOST_HEADER else b""
    crc = file.read(4)
    if len(text) < size or len(crc) < 4 or zlib.crc32(text) != int.from_bytes(crc, "little"):
        raise DataError(f"{name}: its header cannot be read: cut short or damaged; encode again")
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: its header cannot be read: cut short or damaged; encode again") from error
    header = CodesHeader(**arguments_of(CodesHeader, error=DataError).check(fields, f"{name}: header"))
    if header.lm is not None and (header.model or max(header.counts) > 1):
        raise DataError(f"{name}: header: a language model beside other models, or rates; encode again")
    for what, given in (("ratios", header.ratios), ("models", header.model)):
        if given is not None and len(given) != len(header.sizes):
            raise DataError(f"{name}: header: {len(given)} {what} for {len(header.sizes)} levels; encode again")
    return header


def tables_of(header: CodesHeader, name: str) -> list[Table | None]:
    """The model of each level; None where its codes are packed plainly."""
    found: list[Table | None] = []
    for number, (plain, size) in enumerate(zip(header.model or [None] * len(header.sizes), header.sizes)):
        try:
            found.append(None if plain is None else Table.of(plain, size))
        except DataError as error:
            raise DataError(f"{name}: header: level {number}: {error}") from error
    return found
