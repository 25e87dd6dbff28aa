"""Files of descript-audio-codec (`.dac`): codes, and what its `decompress` is told beside them.

The package writes a pickled dictionary into numpy's format. It is read here without unpickling: only plain values and
the bytes of arrays are taken, and whatever else a file names is refused. Reference: dac/model/base.py, `DACFile`.
"""

import io
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from vivavoce.errors import DataError

VERSION = "1.0.0"
_NUMBERS = re.compile(r"[uif][1248]")
_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError,
            OverflowError, MemoryError, RecursionError, ImportError, UnicodeDecodeError)  # fmt: skip


@dataclass(frozen=True)
class DACFile:
    """codes [channels, K, frames] of pieces of `chunk_length` frames, each made of its own piece of the signal, which
    overlap unless `padding`; original_length in samples at sample_rate, both of the recording; input_db: its loudness,
    which is given back to it."""

    codes: np.ndarray
    chunk_length: int
    original_length: int
    input_db: float
    channels: int
    sample_rate: int
    padding: bool

    def save(self, file: Any) -> None:
        """Write to a file object, as the package does."""
        if self.codes.size and not 0 <= int(self.codes.min()) <= int(self.codes.max()) < 1 << 16:
            raise DataError(f"codes {self.codes.min()} to {self.codes.max()}: the format has 16 bits for each")
        about = {
            "input_db": np.array([self.input_db], np.float32),
            "original_length": int(self.original_length),
            "sample_rate": int(self.sample_rate),
            "chunk_length": int(self.chunk_length),
            "channels": int(self.channels),
            "padding": bool(self.padding),
            "dac_version": VERSION,
        }
        np.save(file, np.array({"codes": self.codes.astype(np.uint16), "metadata": about}, dtype=object))


def read_dac(path: str | Path) -> DACFile:
    """The content of a file; `DataError` where it is missing, damaged, of another version, or holds anything else."""
    path = Path(path)
    try:
        found = _plain(path.read_bytes())
        codes, about = found["codes"], dict(found["metadata"])
        version, loudness = about.pop("dac_version", None), np.asarray(about.pop("input_db"), np.float64)
        if version != VERSION:
            raise DataError(f"{path}: of version {version!r}, only {VERSION} is known")
        if loudness.size != 1 or not np.isfinite(loudness).all():
            raise DataError(f"{path}: input_db is {loudness.tolist()}: one loudness expected")
        file = DACFile(codes, input_db=float(loudness.reshape(-1)[0]), **about)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise DataError(f"{path}: no .dac file, or a damaged one: {' '.join(str(error).split())[:200]}") from error
    return _checked(file, path)


def _checked(file: DACFile, path: Path) -> DACFile:
    numbers = {"chunk_length": 1, "original_length": 0, "channels": 1, "sample_rate": 1}
    for name, least in numbers.items():
        value = getattr(file, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 1 << 40:
            raise DataError(f"{path}: {name} is {value!r}: a whole number from {least} expected")
    codes = file.codes
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "ui" or codes.ndim != 3 or not codes.size:
        raise DataError(f"{path}: codes are no whole numbers [channels, codebooks, frames]")
    if len(codes) != file.channels or codes.shape[2] % file.chunk_length:
        raise DataError(f"{path}: codes {codes.shape} for {file.channels} channels in pieces of {file.chunk_length}")
    return replace(file, codes=codes.astype(np.int64), padding=bool(file.padding))


# -- what the pickle says, without doing it --


class _Type:
    """A dtype's name, and its byte order."""

    def __init__(self, name: str, *_: Any):
        self.name, self.order = name, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if not _NUMBERS.fullmatch(self.name) or self.order not in "<>|=":
            raise ValueError(f"an array of {self.name!r}")
        return np.dtype(self.order + self.name)


class _Array:
    """An array's shape, type and bytes; of objects, the objects."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.type, self.fortran, self.content = state

    def plain(self) -> Any:
        """Its values; of an array of one object, the object."""
        if isinstance(self.content, list):
            (only,) = self.content
            return only
        flat = np.frombuffer(self.content, self.type.numpy())
        return flat.reshape(self.shape[::-1]).T if self.fortran else flat.reshape(self.shape)


def _scalar(kind: _Type, content: bytes) -> Any:
    return np.frombuffer(content, kind.numpy())[0].item()


class _Reader(pickle.Unpickler):
    """Knows four names of numpy's, and has stand-ins for them."""

    def find_class(self, module: str, name: str) -> Any:
        inner = module in ("numpy.core.multiarray", "numpy._core.multiarray")
        known: dict[str, Any] = {"_reconstruct": lambda *_: _Array(), "scalar": _scalar} if inner else {}
        known |= {"ndarray": _Array, "dtype": _Type} if module == "numpy" else {}
        if name not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such file needs")
        return known[name]


def _plain(content: bytes) -> dict[str, Any]:
    """The dictionary of numpy's file of one object."""
    file = io.BytesIO(content)
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
    shape, _, kind = header(file)
    if shape != () or kind != np.dtype(object):
        raise ValueError("numpy's file holds no dictionary")
    found = _unwrapped(_Reader(file).load())
    if not isinstance(found, dict):
        raise ValueError("numpy's file holds no dictionary")
    return found


def _unwrapped(value: Any) -> Any:
    if isinstance(value, _Array):
        return _unwrapped(value.plain())
    return {key: _unwrapped(each) for key, each in value.items()} if isinstance(value, dict) else value
