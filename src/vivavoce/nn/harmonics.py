"""Speech as a source that filters shape: harmonics of a pitch, and noise, each times the gains of its bins.

A network that gives gains has no phases to learn: those of the harmonics follow from the pitch, as they do in DDSP
(arXiv:2001.04643) and in the neural source-filter models behind HiFTNet (arXiv:2309.09493), here frame by frame in the
spectra of an inverse STFT.
"""

import math

import torch
from torch import Tensor

from vivavoce.nn.chance import normal
from vivavoce.nn.istft import StreamingISTFT
from vivavoce.nn.streaming import INFINITE, State, lengths_of, take_frames

LOWEST, HIGHEST = 55.0, 500.0  # Hz: of the pitch
PITCHES = 128  # between them, by octaves
FINE = 1 << 20  # units of a Hz: whole numbers add up to the same whatever the pieces
TURN = 1 << 32  # units of a turn of the phase
TOP = 0.97  # of half the sample rate: the last harmonic lies below


def pitches() -> Tensor:
    """Hz, [PITCHES] float64."""
    return hertz(2 * torch.arange(PITCHES, dtype=torch.float64) / PITCHES - 1)


def hertz(places: Tensor) -> Tensor:
    """Places between -1, the lowest pitch, and 1 (those of `PITCHES` are exact in half precision) -> Hz, float64."""
    share = (places.double().clamp(-1, 1) + 1) / 2 * PITCHES / (PITCHES - 1)
    return LOWEST * (HIGHEST / LOWEST) ** share


class HarmonicISTFT(StreamingISTFT):
    """Frames [B, T, 2 x (fft_size / 2 + 1) + 1] -> waveform [B, T x hop, 1]: log-gains of harmonics and of noise for
    each bin, and the place of a pitch, as `hertz` reads it.

    Both sources have the power of white noise of variance 1. Within a window the pitch stands still; from the middle of
    one window to the next the phase goes on by the mean of both pitches. Harmonics all begin as cosines. The noise is a
    hash of the row's `seed` and the sample's place (see `Noise`). No gradient goes through the pitch.
    """

    shape: Tensor

    def __init__(self, fft_size: int, hop: int, sample_rate: int, loudest: float = 4.6):
        super().__init__(fft_size, hop, loudest)
        self.receptive_field = INFINITE  # the phase goes on for ever
        self.sample_rate = sample_rate
        window = torch.hann_window(fft_size)
        self.register_buffer("shape", window / window.square().sum().sqrt(), persistent=False)

    @property
    def inputs(self):
        return 2 * self.bins + 1

    @property
    def ahead(self) -> int:
        """Samples from the middle of a frame's hop to the middle of its window."""
        return (self.fft_size - self.stride) // 2

    def initial_state(self, batch, device=None, dtype=None):
        """Besides the overlap: `phase` [B] and `pitch` [B] at the middle of the last window, in TURN and FINE; `heard`
        [B], frames so far; `seed` [B]. All int64."""
        state = super().initial_state(batch, device, dtype)
        zero = state.emitted
        seed = torch.randint_like(zero, 1 << 62) if self.training else zero
        return State(state, phase=zero, pitch=zero, heard=zero, seed=seed)

    def step(self, x, state, lengths=None):
        if not x.shape[1]:
            wave, after = self.add(x, x, state, lengths)
            return wave, State({**state, **after})
        valid = lengths_of(x, lengths)
        with torch.no_grad():
            pitch = (hertz(x[..., -1]) * FINE).round().long()
            phase = self.phases(pitch, state)
            tones, noise = self.tones(pitch, phase), self.noise(state["seed"], state["heard"], x.shape[1])
            spectra = torch.fft.rfft(torch.stack([tones, noise]) * self.shape)
        gains = x[..., :-1].float().clamp(max=self.loudest).exp()
        spectrum = gains[..., : self.bins] * spectra[0] + gains[..., self.bins :] * spectra[1]
        samples = torch.fft.irfft(spectrum, n=self.fft_size, norm="ortho") * self.taper
        wave, after = self.add(samples.to(x.dtype), x, state, lengths)
        heard, last = valid > 0, (valid - 1).clamp(min=0)[:, None]
        for name, values in (("phase", phase), ("pitch", pitch)):
            after[name] = torch.where(heard, take_frames(values, last)[:, 0], state[name])
        return wave, State(after, heard=state["heard"] + valid, seed=state["seed"])

    def phases(self, pitch: Tensor, state: State) -> Tensor:
        """Of the first harmonic at the middle of each window, [B, T] in TURN, of pitches [B, T] in FINE."""
        before = torch.where(state["heard"] > 0, state["pitch"], pitch[:, 0])
        doubled = torch.cat([before[:, None], pitch[:, :-1]], dim=1) + pitch
        steps = doubled * (self.stride * (TURN // FINE)) // (2 * self.sample_rate)
        steps[:, 0] *= state["heard"] > 0
        return (state["phase"][:, None] + steps.cumsum(1)) % TURN

    def tones(self, pitch: Tensor, phase: Tensor) -> Tensor:
        """All harmonics together, [B, T, fft_size] float32, of pitches in FINE and phases in TURN, both [B, T].

        sum of cos(k a) over k = 1 … n is (sin((n + 1/2) a) / sin(a / 2) - 1) / 2.
        """
        places = torch.arange(self.fft_size, device=pitch.device) - self.fft_size // 2
        rate = pitch.double() / FINE
        turns = phase.double()[..., None] / TURN + rate[..., None] * places / self.sample_rate
        angle = (2 * math.pi * (turns - turns.round())).float()
        count = (TOP * self.sample_rate / 2 / rate).floor().float()[..., None]
        half = (angle / 2).sin()
        near = half.abs() < 1e-4
        ratio = torch.where(near, 2 * count + 1, ((count + 0.5) * angle).sin() / torch.where(near, 1.0, half))
        return (ratio - 1) / 2 * (2 / count).sqrt()

    def noise(self, seed: Tensor, first: Tensor, frames: int) -> Tensor:
        """White noise [B, frames, fft_size] in the windows from frame `first` [B] on."""
        places = torch.arange((frames - 1) * self.stride + self.fft_size, device=seed.device)
        at = (first * self.stride)[:, None] + places
        return normal(seed[:, None], at, torch.zeros_like(at)).unfold(1, self.fft_size, self.stride)
