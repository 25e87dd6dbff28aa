"""`encode` and `decode` to and from descript-audio-codec's own files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIX = ".dac"


def is_dac(path: str | Path) -> bool:
    """Whether a file is one of these, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def encode_dac(tokenizer: Any, recording: str, output: Path) -> dict[str, Any]:
    """Write a recording as the package's `compress` does; what was written."""
    from vivavoce.audio import read
    from vivavoce.codecs.dac_pieces import compress
    from vivavoce.data.files import atomic

    file = compress(tokenizer, read(recording))
    with atomic(output, "wb") as out:
        file.save(out)
    channels, codebooks, frames = file.codes.shape
    return {
        "seconds": round(file.original_length / file.sample_rate, 3),
        "channels": channels,
        "codebooks": codebooks,
        "frames": frames,
        "bytes": output.stat().st_size,
    }


def decode_dac(places: Sequence[str], output: Path, allow_pickle: bool, **place: Any) -> dict[str, Any]:
    """Turn such a file (the last of `places`, behind its model) into audio as the package's `decompress` does.

    Raises `RequestError` unless `allow_pickle`, although nothing in the file is run.
    """
    import vivavoce
    from vivavoce.audio import write
    from vivavoce.codecs.dac_file import read_dac
    from vivavoce.codecs.dac_pieces import decompress
    from vivavoce.errors import RequestError

    if not allow_pickle:
        raise RequestError(f"{places[-1]} is a pickle, which is not read unasked: pass --allow-pickle for its codes")
    if len(places) != 2:
        raise RequestError(f"{places[-1]} does not tell what made it: name the model before the file")
    file = read_dac(places[-1])
    audio = decompress(vivavoce.load_tokenizer(places[0], allow_pickle=True, **place), file)
    write(output, audio)
    return {"model": places[0], "seconds": round(audio.duration, 3), "output": str(output)}
