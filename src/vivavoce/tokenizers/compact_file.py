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
    what a codec that normalises has divided each chunk by (`scales`)."""

    tokenizer: str
    fingerprint: str | None
    sample_rate: Positive
    samples: Count
    frames: Count
    sizes: Annotated[list[Size], Field(min_length=1)]
    scales: list[float] | None = None
    crc32: int = 0


def code_bits(size: int) -> int:
    """Bits of one code of a codebook with `size` entries."""
    return max(1, (size - 1).bit_length())


def pack_codes(codes: np.ndarray, header: CodesHeader) -> bytes:
    """The file's bytes for integer codes [codebooks, frames]; raises `DataError` for codes outside their codebook."""
    if codes.shape != (len(header.sizes), header.frames):
        raise DataError(f"codes {codes.shape} where the header says ({len(header.sizes)}, {header.frames})")
    rows = []
    for level, (row, size) in enumerate(zip(codes, header.sizes, strict=True)):
        if row.size and not (row.min() >= 0 and row.max() < size):
            raise DataError(f"codebook {level}: codes {row.min()} to {row.max()}, but it has {size} entries")
        shifts = np.arange(code_bits(size))[::-1]
        rows.append((row.astype(np.int64)[:, None] >> shifts & 1).astype(np.uint8).ravel())
    payload = np.packbits(np.concatenate(rows)).tobytes() if rows else b""
    fields = json.dumps({**asdict(header), "crc32": zlib.crc32(payload)}).encode()
    return MAGIC + len(fields).to_bytes(4, "little") + fields + payload


def unpack_codes(content: bytes, name: str = "codes") -> tuple[np.ndarray, CodesHeader]:
    """Codes int64 [codebooks, frames] and header; raises `DataError` for anything but a whole file of this kind."""
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
    widths = [code_bits(size) for size in header.sizes]
    if len(payload) != -(-sum(widths) * header.frames // 8) or zlib.crc32(payload) != header.crc32:
        raise DataError(f"{name}: cut short or damaged ({len(payload)} bytes of codes); encode again")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8))
    codes, at = np.zeros((len(widths), header.frames), np.int64), 0
    for level, width in enumerate(widths):
        block = bits[at : at + width * header.frames].reshape(header.frames, width).astype(np.int64)
        codes[level] = block @ (1 << np.arange(width)[::-1])
        at += width * header.frames
    return codes, header


def read_codes(path: str | Path) -> tuple[np.ndarray, CodesHeader]:
    """Codes and header of a file; raises `DataError` as `unpack_codes` does, and where there is no file."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    return unpack_codes(Path(path).read_bytes(), str(path))
