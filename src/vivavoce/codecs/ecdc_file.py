"""EnCodec's own files (`.ecdc`), bit for bit as the package `encodec` writes and reads them.

`ECDC`, a version, the length of a JSON header (big-endian), the header; then, chunk after chunk of the codec: a scale
(float32, big-endian) where it normalises, and the codes frame by frame, packed with the lowest bit first, or through an
arithmetic coder by the chances of a language model. These are float32 as the model gives them, rounded off at 1e-8: a
file with a language model can be read where the same machine and torch have the very same floats, and ends in noise
elsewhere; the format has no checksum. Reference: encodec/compress.py, binary.py, quantization/ac.py.
"""

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from vivavoce.codecs.code_lm import CodeLM
from vivavoce.codecs.ecdc_coder import Bits, coded, decoded, stacked, taken
from vivavoce.errors import DataError

HEADER = struct.Struct("!4sBI")
MAGIC = b"ECDC"
MOST_HEADER = 1 << 16


@dataclass
class EcdcFile:
    """name: of the model, `encodec_24khz` or `encodec_48khz`; samples at its rate; codes [K, T] of each chunk, and its
    scale where the model normalises; by_model: whether a language model codes them. cut: what is missing of a file, a
    sentence."""

    name: str
    samples: int
    codes: list[np.ndarray]
    scales: list[float] = field(default_factory=list)
    by_model: bool = False
    cut: str = ""


def write_ecdc(file: IO[bytes], content: EcdcFile, size: int, model: CodeLM | None = None) -> None:
    """Write codes of codebooks of `size` entries; model: of the codes, where `by_model`."""
    about = {"m": content.name, "al": content.samples, "nc": len(content.codes[0]), "lm": content.by_model}
    text = json.dumps(about).encode()
    file.write(HEADER.pack(MAGIC, 0, len(text)) + text)
    for number, codes in enumerate(content.codes):
        if content.scales:
            file.write(struct.pack("!f", content.scales[number]))
        if content.by_model:
            assert model is not None
            file.write(coded(codes, model))
            continue
        bits = Bits((size - 1).bit_length())
        for code in codes.T.ravel().tolist():
            bits.push(code)
        file.write(bits.flush())


def ecdc_header(path: str | Path) -> tuple[EcdcFile, int, bytes]:
    """What the header says (`codes` empty), the number of codebooks, and the bytes behind it. Raises `DataError`."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if len(content) < HEADER.size or content[:4] != MAGIC:
        raise DataError(f"{path}: no .ecdc file: it does not begin with {MAGIC.decode()}")
    _, version, size = HEADER.unpack(content[: HEADER.size])
    rest = content[HEADER.size :]
    if version != 0 or size > min(MOST_HEADER, len(rest)):
        raise DataError(f"{path}: of version {version}, with a header of {size} bytes: only version 0 is known, or cut")
    try:
        about = json.loads(rest[:size])
        name, samples, levels, by_model = (about[key] for key in ("m", "al", "nc", "lm"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: its header cannot be read: {error}") from error
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (samples, levels))
    if not whole or not 1 <= levels <= 64 or not 0 < samples < 1 << 40 or not isinstance(by_model, bool):
        raise DataError(f"{path}: its header says {samples!r} samples, {levels!r} codebooks, lm {by_model!r}")
    return EcdcFile(str(name), samples, [], by_model=by_model), levels, rest[size:]


def read_ecdc(path: str | Path, counts: list[int], size: int, scaled: bool, model: CodeLM | None = None) -> EcdcFile:
    """A file whose chunks have so many frames each (`counts`), of codebooks of `size` entries.

    What is cut off is said in `cut`; whole frames before it are there. Raises `DataError`."""
    found, levels, content = ecdc_header(path)
    if found.by_model and model is None:
        raise DataError(f"{path}: its codes are coded by a language model, which this codec does not have")
    bytes_ = iter(content)
    for number, count in enumerate(counts):
        if scaled:
            head = bytes(byte for _, byte in zip(range(4), bytes_))
            if len(head) < 4:
                break
            found.scales.append(struct.unpack("!f", head)[0])
        if found.by_model:
            assert model is not None
            codes = decoded(bytes_, levels, count, model)
        else:
            width = (size - 1).bit_length()
            whole = -(-width * levels * count // 8)
            numbers = list(taken(iter([byte for _, byte in zip(range(whole), bytes_)]), width))[: levels * count]
            there = len(numbers) // levels * levels
            codes = stacked([numbers[at : at + levels] for at in range(0, there, levels)], levels)
        if codes.size and codes.max() >= size:
            raise DataError(f"{path}: chunk {number} has code {codes.max()}, codebooks have {size}: damaged")
        found.codes.append(codes)
        if codes.shape[1] < count:
            break
    frames, told = sum(codes.shape[1] for codes in found.codes), sum(counts)
    if frames < told:
        found.cut = f"{path}: cut short: {frames} of {told} frames"
    return found


def frames_of(samples: int, sample_rate: int, hop: int) -> int:
    """Frames of a chunk, as the package counts them: by floats."""
    return math.ceil(samples / sample_rate * math.ceil(sample_rate / hop))
