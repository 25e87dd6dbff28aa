"""DAC as its package's `compress` and `decompress` run it: loudness brought to one level, the signal in pieces.

Reference: dac/model/base.py (`CodecMixin`), with audiotools' loudness. A signal longer than the window is cut into
pieces that overlap; in each the convolutions are not padded, so that a piece gives fewer samples than it has, and those
of all pieces stand side by side. Resampling is ours.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.audio import Audio, resample
from vivavoce.audio.loudness import filtered
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.dac import DACConfig
from vivavoce.codecs.dac_file import DACFile
from vivavoce.codecs.whole_frames import WholeFrames
from vivavoce.errors import DataError, RequestError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.residual import Residual
from vivavoce.nn.streaming import Chain, Pointwise, Streaming

WINDOW, LEVEL = 1.0, -16.0  # seconds of a piece, LUFS
_SILENT, _SHORTEST, _BLOCK = -70.0, 0.5, 0.4


@torch.no_grad()
def compress(codec: Codec, audio: Audio, window: float | None = WINDOW, level: float | None = LEVEL) -> DACFile:
    """Audio -> what the package's `compress(win_duration=window, normalize_db=level)` keeps of it.

    window None: the whole signal at once. Raises `RequestError` for another codec than DAC and a window that is too
    short for the convolutions.
    """
    _check(codec)
    rate = codec.sample_rate
    samples = audio.samples if audio.sample_rate == rate else resample(audio.samples, audio.sample_rate, rate)
    if not samples.shape[1]:
        raise RequestError("audio without a sample cannot be compressed")
    loudness = audiotools_loudness(samples, rate)
    if level is not None:
        samples = samples * np.float32(10 ** ((level - loudness) / 20))
    samples = samples / np.maximum(np.abs(samples).max(1, keepdims=True), 1)
    wave = torch.from_numpy(samples).to(next(codec.encoder.parameters()))[:, None]
    size, whole = wave.shape[2], window is None or wave.shape[2] / rate <= window
    if whole:
        pieces = [codec.encode(wave)]
    else:
        length = -(-int(float(window or 0) * rate) // codec.hop) * codec.hop
        step = _outputs(codec, length)
        if step < 1:
            raise RequestError(f"window {window} s: its {length} samples are fewer than the convolutions hear")
        delay = _delay(codec)
        wave = F.pad(wave, (delay, delay + length))
        pieces = []
        for start in range(0, size, step):
            latents = unpadded(codec.encoder, wave[..., start : start + length].transpose(1, 2))
            pieces.append(codec.quantizer.encode(latents, None, codec.codebooks))
    codes = torch.cat(pieces, dim=2).cpu().numpy()
    return DACFile(
        codes, pieces[0].shape[2], len(audio), loudness, audio.channels, audio.sample_rate, padding=whole
    )  # fmt: skip


@torch.no_grad()
def decompress(codec: Codec, file: DACFile) -> Audio:
    """What the package's `decompress` gives: as long as the recording was, each channel as loud as it.

    Raises `RequestError` for another codec than DAC, `DataError` for codes that it has not.
    """
    _check(codec)
    home = next(codec.decoder.parameters())
    codes = torch.from_numpy(file.codes).to(home.device)
    try:
        codec.quantizer.check_codes(codes)
        said = []
        for piece in codes.split(file.chunk_length, dim=2):
            latents = codec.quantizer.decode(piece).to(home.dtype)
            sound = codec.decode_latents(latents) if file.padding else unpadded(codec.decoder, latents).transpose(1, 2)
            said.append(sound)
    except RequestError as error:
        raise DataError(f"codes that this codec cannot have made: {error}") from error
    samples = torch.cat(said, dim=2)[:, 0].float().cpu().numpy()
    gains = [10 ** ((file.input_db - audiotools_loudness(row[None], codec.sample_rate)) / 20) for row in samples]
    samples = samples * np.array(gains, np.float32)[:, None]
    if file.sample_rate != codec.sample_rate:
        samples = resample(samples, codec.sample_rate, file.sample_rate)
    samples = samples[:, : file.original_length]
    return Audio(np.pad(samples, ((0, 0), (0, file.original_length - samples.shape[1]))), file.sample_rate)


def unpadded(part: Streaming, x: Tensor) -> Tensor:
    """Frames x [B, T, D] through a stack of DAC's whose convolutions are neither padded nor trimmed."""
    if isinstance(part, Chain):
        for each in part:
            x = unpadded(each, x)
        return x
    if isinstance(part, WholeFrames):
        return x
    if isinstance(part, Pointwise):
        return part.function(x)
    if isinstance(part, Residual):
        y = unpadded(part.inner, x)
        side = (x.shape[1] - y.shape[1]) // 2
        return y + x[:, side : side + y.shape[1]]
    if isinstance(part, Conv):
        y = F.conv1d(x.transpose(1, 2), part.weight, part.bias, part.stride, 0, part.dilation)
    elif isinstance(part, ConvTranspose):
        y = F.conv_transpose1d(x.transpose(1, 2), part.weight, part.bias, part.stride)
    else:
        raise RequestError(f"no DAC has a {type(part).__name__}")
    return y.transpose(1, 2)


def _check(codec: Codec) -> None:
    if not isinstance(getattr(codec, "config", None), DACConfig):
        raise RequestError(".dac files are made and read by a DAC: name one as the model")


def _convolutions(codec: Codec) -> list[Conv | ConvTranspose]:
    chains = (codec.encoder, codec.decoder)
    return [each for chain in chains for each in chain.modules() if isinstance(each, Conv | ConvTranspose)]


def _outputs(codec: Codec, length: int) -> int:
    """Samples that a piece of `length` gives; below 1 where there are none."""
    for each in _convolutions(codec):
        if isinstance(each, Conv):
            length = (length - each.span) // each.stride + 1
        else:
            length = (length - 1) * each.stride + each.kernel
    return length


def _delay(codec: Codec) -> int:
    """Samples that a piece loses at each end."""
    given = length = _outputs(codec, 0)
    for each in reversed(_convolutions(codec)):
        if isinstance(each, Conv):
            length = (length - 1) * each.stride + each.span
        else:
            length = math.ceil((length - each.kernel) / each.stride + 1)
    return (length - given) // 2


def audiotools_loudness(samples: np.ndarray, rate: int) -> float:
    """Loudness of samples [channels, n] in LUFS as audiotools measures it, -70 at least.

    BS.1770 by pyloudnorm's filters, which are not quite the recommendation's; a last block that is not full counts.
    """
    channels, size = samples.shape
    samples = np.pad(samples, ((0, 0), (0, max(0, int(_SHORTEST * rate) - size))))
    block = int(_BLOCK * rate)
    step = int(_BLOCK * rate * 0.25)
    heard = np.square(filtered(samples, rate, _filters(rate)))
    blocks = -(-max(0, heard.shape[1] - block) // step) + 1
    heard = np.pad(heard, ((0, 0), (0, max(0, (blocks - 1) * step + block - heard.shape[1]))))
    weights = np.array([1.0, 1.0, 1.0, 1.41, 1.41])[:channels]
    if len(weights) < channels:
        raise RequestError(f"loudness of {channels} channels: 5 at most")
    sums = np.concatenate([np.zeros(1), np.cumsum(weights @ heard)])
    starts = np.arange(blocks) * step
    powers = (sums[starts + block] - sums[starts]) / (_BLOCK * rate)
    kept = powers[_lufs(powers) > _SILENT]
    if not len(kept):
        return _SILENT
    kept = kept[_lufs(kept) > _lufs(kept.mean()) - 10]
    return max(_SILENT, float(_lufs(kept.mean())))


def _lufs(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-30))


def _filters(rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """pyloudnorm's K weighting: a shelf of 4 dB from 1500 Hz, a high pass at 38 Hz (R. Bristow-Johnson's forms)."""
    gain, angle = 10 ** (4.0 / 40), 2 * math.pi * 1500.0 / rate
    cosine, slope = math.cos(angle), 2 * math.sqrt(gain) * math.sin(angle) / math.sqrt(2)
    up, down = gain + 1, gain - 1
    shelf = gain * np.array([up + down * cosine + slope, -2 * (down + up * cosine), up + down * cosine - slope])
    poles = np.array([up - down * cosine + slope, 2 * (down - up * cosine), up - down * cosine - slope])
    filters = [(shelf / poles[0], poles / poles[0])]
    angle = 2 * math.pi * 38.0 / rate
    cosine, alpha = math.cos(angle), math.sin(angle)  # quality 0.5
    high = np.array([(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2])
    poles = np.array([1 + alpha, -2 * cosine, 1 - alpha])
    return [*filters, (high / poles[0], poles / poles[0])]
