"""`encode` and `decode` to and from the files of EnCodec's own package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIX = ".ecdc"
NAMES = {24000: "encodec_24khz", 48000: "encodec_48khz"}


def is_ecdc(path: str | Path) -> bool:
    """Whether a file is one of these, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def encode_ecdc(tokenizer: Any, recording: str, output: Path, entropy: bool) -> dict[str, Any]:
    """Write a recording as the package's `compress` does, entropy: by the language model of the codes."""
    import torch

    from vivavoce.audio import read
    from vivavoce.codecs.ecdc_file import EcdcFile, write_ecdc
    from vivavoce.data.files import atomic
    from vivavoce.systems.codec_model import channel_samples

    name, model = _of_encodec(tokenizer, output), _model(tokenizer, output) if entropy else None
    wave = channel_samples(read(recording), tokenizer.sample_rate, tokenizer.channels, recording)
    heard, scales = torch.from_numpy(wave)[None], []
    if hasattr(tokenizer, "encode_scaled"):
        codes, found = tokenizer.encode_scaled(heard)
        scales = found[0].tolist()
    else:
        codes = tokenizer.encode(heard)
    counts = [tokenizer.encoder.frames(size) for _, size in _chunks(tokenizer, wave.shape[1])]
    pieces = [piece.cpu().numpy() for piece in codes[0].split([int(count) for count in counts], dim=1)]
    file = EcdcFile(name, wave.shape[1], pieces, scales if getattr(tokenizer, "normalize", False) else [], entropy)
    with atomic(output, "wb") as out:
        write_ecdc(out, file, tokenizer.codebook_size, model)
    size = output.stat().st_size
    return {
        "seconds": round(wave.shape[1] / tokenizer.sample_rate, 3),
        "codebooks": codes.shape[1],
        "frames": codes.shape[2],
        "bytes": size,
        "file_bits_per_second": round(8 * size * tokenizer.sample_rate / wave.shape[1], 1),
    }


def decode_ecdc(places: Sequence[str], output: Path, allow_pickle: bool, **place: Any) -> tuple[dict[str, Any], str]:
    """Turn such a file (the last of `places`, behind its model) into audio as the package's `decompress` does; what was
    done, and what is missing of the file."""
    import torch

    import vivavoce
    from vivavoce.audio import Audio, write
    from vivavoce.codecs.ecdc_file import ecdc_header, frames_of, read_ecdc
    from vivavoce.errors import DataError, RequestError

    path = places[-1]
    if len(places) != 2:
        raise RequestError(f"{path} does not tell what made it on this machine: name the model before the file")
    header, levels, _ = ecdc_header(path)
    codec: Any = vivavoce.load_tokenizer(places[0], codebooks=levels, allow_pickle=allow_pickle, **place)
    if header.name != _of_encodec(codec, path):
        raise DataError(f"{path}: of {header.name}, and {places[0]} is {_of_encodec(codec, path)}")
    chunks = _chunks(codec, header.samples)
    counts = [frames_of(size, codec.sample_rate, codec.hop) for _, size in chunks]
    model = _model(codec, path) if header.by_model else None
    file = read_ecdc(path, counts, codec.codebook_size, bool(getattr(codec, "normalize", False)), model)
    codes = torch.cat([torch.from_numpy(piece) for piece in file.codes], dim=1)[None] if file.codes else None
    if codes is None or not codes.shape[2]:
        raise DataError(file.cut or f"{path}: it holds no frame")
    scaled = {"scales": torch.tensor([file.scales])} if file.scales else {}
    samples = header.samples
    if file.cut:
        last = len(file.codes) - 1
        samples = min(samples, chunks[last][0] + file.codes[last].shape[1] * codec.hop)
    wave = codec.decode(codes[..., : codec.frames(samples)], torch.tensor([samples]), **scaled)[0].float().cpu()
    write(output, Audio(wave.clamp(-1, 1).numpy(), codec.sample_rate))
    told = {"model": places[0], "seconds": round(samples / codec.sample_rate, 3), "output": str(output)}
    return told, file.cut


def _chunks(codec: Any, samples: int) -> list[tuple[int, int]]:
    """Start and length of each chunk that a file has."""
    return codec.chunks(samples) if hasattr(codec, "chunks") else [(0, samples)]


def _of_encodec(codec: Any, path: Any) -> str:
    """The package's name of this codec."""
    from vivavoce.errors import RequestError

    chunked = hasattr(codec, "chunks")
    if codec.sample_rate not in NAMES or chunked != (codec.sample_rate == 48000) or len(set(codec.codebook_sizes)) > 1:
        raise RequestError(f"{path}: such files are of EnCodec at 24 or 48 kHz; this codec has {codec.sample_rate} Hz")
    return NAMES[codec.sample_rate]


def _model(codec: Any, path: Any) -> Any:
    """The language model of a codec's codes, in float32 where it computes as the package's does."""
    from vivavoce.errors import RequestError

    models = getattr(codec, "entropy", None)
    if models is None or models.config.within or models.coarse is not None:
        raise RequestError(f"{path}: it needs the language model of EnCodec's codes, which this codec does not have")
    return models.sent.cpu().float().eval()
