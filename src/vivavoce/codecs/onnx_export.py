"""A causal codec as ONNX graphs whose state goes in and comes out, for one signal, a frame a step.

    encoder-begin.onnx  the first samples [1, C, begin] -> codes [1, K, frames], state
    encoder-step.onnx   the next hop of samples, state -> one frame of codes [1, K, 1], state
    decoder-begin.onnx  the first frames of codes -> samples, state
    decoder-step.onnx   a frame of codes, state -> samples [1, C, hop], state
    codec.json          sizes, and which outputs are which inputs (`OnnxCodec` reads it)

The modules themselves are traced, so that there is one definition of what they compute, where they have settled: what
a convolution pads at the left is made in `begin`. Written out otherwise are only windows of a convolution (as the
operator Conv) and Fourier transforms (as matrices). A signal ends on a whole frame: zeros fill the last one, as in
Mimi.
"""

from __future__ import annotations

import copy
import json
import math
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.spectrum import power_spectrum
from vivavoce.codecs.codec import Codec
from vivavoce.codecs.convnext import StreamingSTFT
from vivavoce.codecs.hilcodec import LogSpectrum
from vivavoce.codecs.onnx_stream import ABOUT, FORMAT, OnnxCodec
from vivavoce.errors import RequestError, need
from vivavoce.nn.convolution import Conv
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.logmel import StreamingLogMel
from vivavoce.nn.stft import STFT
from vivavoce.nn.streaming import Chain, State
from vivavoce.nn.weights import written_whole
from vivavoce.quantizers.nearest import TIE

OPSET = 18
COUNTERS = ("position", "counter", "heard")  # integers of a state that what is computed depends on; others count frames
STEPS = 24  # frames over which a written codec is compared with ours
WAYS = ("encode", "encode_step", "decode", "decode_step", "encoder_state", "decoder_state")


def export_onnx(codec: Codec, folder: str | Path) -> None:
    """Write a codec to a folder. Raises `RequestError` for one that is not causal or does not settle, `MissingExtra`
    without the package onnx."""
    need("onnx", "onnx", "writing ONNX")
    place = Path(folder)
    ahead = max(codec.encoder.lookahead, codec.decoder.lookahead)
    if ahead > 0 or any(getattr(type(codec), name) is not getattr(Codec, name) for name in WAYS):
        why = f"it looks {ahead} frames ahead" if ahead else f"a {type(codec).__name__} is more than its two stacks"
        raise RequestError(f"only causal codecs become ONNX graphs with a state: {why}")
    if codec.encoder.chunk > codec.hop or codec.decoder.chunk > 1:
        raise RequestError("only codecs of single frames become ONNX graphs: this one waits until some are together")
    place.mkdir(parents=True, exist_ok=True)
    plain = _written_out(codec)
    about: dict[str, Any] = {
        "format": FORMAT, "sample_rate": codec.sample_rate, "channels": codec.channels, "hop": codec.hop,
        "frame_rate": codec.frame_rate, "codebook_sizes": list(codec.codebook_sizes), "opset": OPSET,
    }  # fmt: skip
    sound = torch.randn(1, codec.channels, codec.hop, generator=torch.Generator().manual_seed(0)) * 0.1

    def heard(wave: Tensor, state: State) -> tuple[Tensor, State]:
        latents, state = plain.encoder.step(wave.transpose(1, 2), state)
        return plain.quantizer.encode(latents, None, plain.codebooks), state

    def said(codes: Tensor, state: State) -> tuple[Tensor, State]:
        wave, state = plain.decoder.step(plain.quantizer.decode(codes), state)
        return wave.transpose(1, 2), state

    frames = _settled(codec.encoder, codec.hop)
    first = sound.repeat(1, 1, frames)
    codes, about["encoder"] = _stack(plain.encoder, heard, place, "encoder", first, sound, frames * codec.hop)
    count = _settled(codec.decoder, 1)
    row = codes[..., -1:]
    _, about["decoder"] = _stack(plain.decoder, said, place, "decoder", row.repeat(1, 1, count), row, count)
    with written_whole(place / ABOUT) as part:
        part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _check(codec, place)


def _settled(chain: Chain, step: int) -> int:
    """Steps after which every further one does the same."""
    return max(1, math.ceil(chain.warmup / step))


def _leaves(state: State, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, State):
            yield from _leaves(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


def _rebuilt(template: State, values: dict[str, Tensor], path: tuple[str, ...] = ()) -> State:
    found = {}
    for name, value in template.items():
        here = (*path, name)
        found[name] = _rebuilt(value, values, here) if isinstance(value, State) else values.get(".".join(here), value)
    return State(found)


class _Begin(nn.Module):
    def __init__(self, stack: Chain, step: Callable, names: list[str]):
        super().__init__()
        self.stack, self.step, self.names = stack, step, names

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.step(x, self.stack.initial_state(1))
        leaves = dict(_leaves(state))
        return (y, *(leaves[name] for name in self.names))


class _Step(nn.Module):
    def __init__(self, step: Callable, template: State, names: list[str]):
        super().__init__()
        self.step, self.template, self.names = step, template, names

    def forward(self, x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        y, state = self.step(x, _rebuilt(self.template, dict(zip(self.names, values, strict=True))))
        leaves = dict(_leaves(state))
        return (y, *(leaves[name] for name in self.names))


def _stack(
    chain: Chain, step: Callable, place: Path, name: str, first: Tensor, following: Tensor, begin: int
) -> tuple[Tensor, dict[str, Any]]:
    """Write the two graphs of a stack; what it gave for `first`, and what `codec.json` says of it."""
    with torch.no_grad():
        y, settled = step(first, chain.initial_state(1))
        for _ in range(2):  # ages beyond which structure depends on nothing but whole steps
            _, later = step(following, settled)
    names = [
        leaf for leaf, value in _leaves(settled)
        if value.numel() and (value.is_floating_point() or leaf.rsplit(".", 1)[-1] in COUNTERS)
    ]  # fmt: skip
    leaves, after = dict(_leaves(settled)), dict(_leaves(later))
    moving = [leaf for leaf in names if leaves[leaf].shape != after[leaf].shape]
    if moving:
        raise RequestError(f"the {name}'s state '{moving[0]}' grows with the signal: it cannot be a graph's input")
    inputs, outputs = [f"state.{leaf}" for leaf in names], [f"next.{leaf}" for leaf in names]
    given, found = ("wave", "codes") if name == "encoder" else ("codes", "wave")
    _write(_Begin(chain, step, names), (first,), place / f"{name}-begin.onnx", [given], [found, *outputs])
    values = tuple(leaves[leaf] for leaf in names)
    _write(
        _Step(step, settled, names), (following, *values), place / f"{name}-step.onnx", [given, *inputs],
        [found, *outputs],
    )  # fmt: skip
    return y, {"begin": begin, "gives": int(y.shape[2]), "states": names}


def _write(module: nn.Module, inputs: tuple, path: Path, given: list[str], found: list[str]) -> None:
    with written_whole(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, of what it takes as constant: it is
        options: Any = {"dynamo": False, "opset_version": OPSET, "input_names": given, "output_names": found}
        try:
            torch.onnx.export(module.eval(), inputs, str(part), **options)
        except torch.onnx.errors.UnsupportedOperatorError as error:
            reason = f"{error}".split("\n")[0]
            raise RequestError(f"this codec does not become an ONNX graph: {reason}") from None


def _written_out(codec: Codec) -> Codec:
    """A copy whose parts have an operator of ONNX each, in float32 on the CPU."""
    plain = copy.deepcopy(codec).to(device="cpu", dtype=torch.float32).eval()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, STFT | LogSpectrum):
            module.convolve = types.MethodType(_transformed(module), module)  # type: ignore[method-assign]
        elif isinstance(module, Conv) and type(module).convolve is Conv.convolve:
            module.convolve = types.MethodType(_convolve, module)  # type: ignore[method-assign]
        elif isinstance(module, StreamingSTFT) and module.periods is None:
            module.spectra = types.MethodType(_parts(module), module)  # type: ignore[method-assign]
        elif isinstance(module, StreamingLogMel):
            module.spectra = types.MethodType(_spectra(module), module)  # type: ignore[method-assign]
        elif isinstance(module, StreamingISTFT):
            module.windows = types.MethodType(_windows(module), module)  # type: ignore[method-assign]
            module.step = types.MethodType(_overlapped, module)  # type: ignore[method-assign]
    return plain


def _convolve(self: Conv, x: Tensor) -> Tensor:
    y = F.conv1d(x.transpose(1, 2), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
    return y.transpose(1, 2)


def _fourier(size: int, fft_size: int) -> tuple[Tensor, Tensor]:
    """[size, bins] by which windows become real and imaginary parts of spectra."""
    spectrum = torch.fft.rfft(torch.eye(size, dtype=torch.float64), n=fft_size)
    return spectrum.real.float(), spectrum.imag.float()


def _transformed(module: STFT | LogSpectrum) -> Callable:
    """The transform as a convolution by tapered waves."""
    waves = [(part * module.taper[:, None]).T[:, None] for part in _fourier(module.fft_size, module.fft_size)]

    def convolve(self: STFT | LogSpectrum, x: Tensor) -> Tensor:
        real, imaginary = (F.conv1d(x.transpose(1, 2), wave, stride=self.stride).transpose(1, 2) for wave in waves)
        above = torch.where(imaginary == 0, 1e-30, imaginary)  # what stands for atan2 takes a zero for below it
        return self.told(real, above)

    return convolve


def _parts(module: StreamingSTFT) -> Callable:
    """The transform by two matrices."""
    cosines, sines = _fourier(module.window, module.fft_size)

    def spectra(self: StreamingSTFT, windows: Tensor) -> Tensor:
        x = windows * self.taper
        return self.told(x @ cosines, x @ sines)

    return spectra


def _spectra(module: StreamingLogMel) -> Callable:
    """The power spectrum by two matrices."""
    size = len(module.taper)
    cosines, sines = _fourier(size, module.fft_size)
    impulse = torch.zeros(1, size)
    impulse[0, 0] = 1
    scale = power_spectrum(impulse, module.fft_size)[0, 0]  # of a spectrum that is 1 everywhere

    def spectra(self: StreamingLogMel, windows: Tensor) -> Tensor:
        x = windows * self.taper
        power = ((x @ cosines).square() + (x @ sines).square()) * scale
        return (power @ self.filters).clamp(min=self.floor).log()

    return spectra


def _windows(module: StreamingISTFT) -> Callable:
    """The inverse transform by two matrices."""
    unit = torch.eye(module.bins, dtype=torch.complex128)
    real = torch.fft.irfft(unit, n=module.fft_size, norm="ortho").float()
    imaginary = torch.fft.irfft(1j * unit, n=module.fft_size, norm="ortho").float()

    def windows(self: StreamingISTFT, x: Tensor) -> Tensor:
        first, second = x.split(self.bins, dim=-1)
        if not self.parts:
            loud = first.clamp(max=self.loudest).exp()
            first, second = loud * second.cos(), loud * second.sin()
        return (first @ real + second @ imaginary) * self.taper

    return windows


def _overlapped(self: StreamingISTFT, x: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
    """Windows added up one by one."""
    windows, count, kept = self.windows(x), int(x.shape[1]), self.fft_size - self.stride
    said, size = count * self.stride, (count - 1) * self.stride + self.fft_size
    wave = F.pad(state["overlap"][..., 0], (0, size - kept))
    for number in range(count):
        start = number * self.stride
        wave = wave + F.pad(windows[:, number], (start, size - start - self.fft_size))
    emitted = torch.full_like(state.emitted, said)
    return wave[:, :said, None], State(overlap=wave[:, said : said + kept, None], emitted=emitted)


@torch.no_grad()
def _check(codec: Codec, place: Path) -> None:
    """Raise `RequestError` unless onnxruntime gives the codes and the sound of `codec`, but for ties."""
    written = OnnxCodec(place)
    chance = torch.Generator().manual_seed(1)
    samples = written.encoder_begin + STEPS * codec.hop
    wave = 0.1 * torch.randn(1, codec.channels, samples, generator=chance) * torch.linspace(0, 1, samples)
    home = next(codec.parameters())
    wave = wave.to(home)
    codes = codec.encode(wave)
    ours, theirs = codes.cpu().numpy(), written.encode(wave.cpu().float().numpy())
    different = ours != theirs
    if ours.shape != theirs.shape or different.any(1).mean() > 0.05:
        raise RequestError(f"its graph gives other codes ({different.mean():.1%}): this codec cannot be written")
    if different.any():
        uncertain = codec.quantizer.ties(codec.encode_latents(wave)).cpu().numpy()
        first = different.any(1)[0].nonzero()[0]
        if not all((different[0, :, at] & uncertain[0, :, at]).any() for at in first):
            raise RequestError(f"its graph gives other codes beyond ties (of {TIE}): this codec cannot be written")
    said, sound = codec.decode(codes)[0].cpu().float().numpy(), written.decode(ours)[0]
    if said.shape != sound.shape or np.abs(said - sound).max() > 1e-3 * max(1e-3, np.abs(said).max()):
        raise RequestError("its graph gives another sound: this codec cannot be written")
