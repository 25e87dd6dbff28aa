"""Codes of one utterance in a compact file: a short JSON header, then every code in as few bits as its codebook needs.

Layout: `VVC1`, the header's length (uint32, little-endian), the header (UTF-8 JSON), the codes codebook by codebook,
each code with ceil(log2(size)) bits, most significant first, padded to a whole byte at the end.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from vivavoce.errors import DataError
from vivavoce.schema.arguments import Count, Positive, arguments_of

MAGIC = b"VVC1"
Size = Annotated[int, Field(ge=1, le=2**31)]


@dataclass(frozen=True)
class CodesHeader:
    """What a decoder must know: the tokenizer and its fingerprint, the waveform's rate and length, codebook sizes, and
    what a codec that normalises has divided each chunk by (`scales`), and, where levels differ in rate, how many codes
    of each a frame has (`ratios`)."""

    tokenizer: str
    fingerprint: str | None
    sample_rate: Positive
    samples: Count
    frames: Count
    sizes: Annotated[list[Size], Field(min_length=1)]
    scales: list[float] | None = None
    ratios: Annotated[list[Size], Field(min_length=1)] | None = None
    crc32: int = 0

    @property
    def counts(self) -> list[int]:
        """Codes of each level."""
        return [self.frames * ratio for ratio in self.ratios or [1] * len(self.sizes)]


def code_bits(size: int) -> int:
    """Bits of one code of a codebook with `size` entries."""
    return max(1, (size - 1).bit_length())


def pack_codes(codes: np.ndarray, header: CodesHeader) -> bytes:
    """The file's bytes for integer codes [codebooks, frames]; raises `DataError` for codes outside their codebook.

    With `ratios`, [codebooks, frames x the largest]: the codes of each level, then whatever there is.
    """
    if codes.shape != (len(header.sizes), max(header.counts)):
        raise DataError(f"codes {codes.shape} where the header says ({len(header.sizes)}, {max(header.counts)})")
    rows = []
    for level, (whole, size, count) in enumerate(zip(codes, header.sizes, header.counts, strict=True)):
        row = whole[:count]
        if row.size and not (row.min() >= 0 and row.max() < size):
            raise DataError(f"codebook {level}: codes {row.min()} to {row.max()}, but it has {size} entries")
        shifts = np.arange(code_bits(size))[::-1]
        rows.append((row.astype(np.int64)[:, None] >> shifts & 1).astype(np.uint8).ravel())
    payload = np.packbits(np.concatenate(rows)).tobytes() if rows else b""
    fields = json.dumps({**asdict(header), "crc32": zlib.crc32(payload)}).encode()
    return MAGIC + len(fields).to_bytes(4, "little") + fields + payload


def unpack_codes(content: bytes, name: str = "codes") -> tuple[np.ndarray, CodesHeader]:
    """Codes int64 [codebooks, frames] and header; raises `DataError` for anything but a whole file of this kind.

    With `ratios` the codes are [codebooks, frames x the largest], -1 behind those of the slower levels.
    """
    if content[:4] != MAGIC:
        raise DataError(
            f"{name}: not a file of codes (it does not begin with {MAGIC.decode()}); 'vivavoce encode' makes one"
        )
    length = int.from_bytes(content[4:8], "little")
    try:
        fields = json.loads(content[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: its header cannot be read: cut short or damaged; encode again") from error
    # The checksum is of the codes alone: the header may say anything.
    header = CodesHeader(**arguments_of(CodesHeader, error=DataError).check(fields, f"{name}: header"))
    payload = content[8 + length :]
    if header.ratios and len(header.ratios) != len(header.sizes):
        raise DataError(f"{name}: header: {len(header.ratios)} ratios for {len(header.sizes)} levels; encode again")
    widths = [code_bits(size) for size in header.sizes]
    total = sum(width * count for width, count in zip(widths, header.counts))
    if len(payload) != -(-total // 8) or zlib.crc32(payload) != header.crc32:
        raise DataError(f"{name}: cut short or damaged ({len(payload)} bytes of codes); encode again")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    codes, at = np.full((len(widths), max(header.counts)), -1, np.int64), 0
    for level, (width, count) in enumerate(zip(widths, header.counts)):
        block = bits[at : at + width * count].reshape(count, width).astype(np.int64)
        codes[level, :count] = block @ (1 << np.arange(width)[::-1])
        at += width * count
    return codes, header


def read_codes(path: str | Path) -> tuple[np.ndarray, CodesHeader]:
    """Codes and header of a file; raises `DataError` as `unpack_codes` does, and where there is no file."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    return unpack_codes(Path(path).read_bytes(), str(path))
