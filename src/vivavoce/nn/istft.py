"""Inverse short-time Fourier transform as a causal stream: spectra in, samples out, no delay."""

from fractions import Fraction

import torch
from torch import Tensor

from vivavoce.errors import RequestError
from vivavoce.nn.streaming import State, Streaming, lengths_of, slice_rows, zero_padding


class StreamingISTFT(Streaming):
    """Frames [B, T, 2 x (fft_size / 2 + 1)] of log-magnitudes and phases -> waveform [B, T x hop, 1].

    Frame t adds its windowed inverse transform to the samples from t x hop on; those up to (t + 1) x hop are complete
    then and emitted. So the stream has no look-ahead, and the network that predicts the spectra learns what of a
    window lies in the future. Log-magnitudes are clipped at `loudest` (Vocos, arXiv:2306.00814, clips at 100).
    The Hann window is scaled so that a constant spectrum's windows sum to one. parts: frames are real and imaginary
    parts instead.
    """

    chunk = 1
    taper: Tensor

    def __init__(self, fft_size: int, hop: int, loudest: float = 4.6, parts: bool = False):
        super().__init__()
        if fft_size % hop or fft_size < 2 * hop:
            raise RequestError(f"inverse STFT: fft_size {fft_size} must be a multiple of hop {hop}, at least twice it")
        self.fft_size, self.stride, self.loudest, self.parts = fft_size, hop, loudest, parts
        self.hop = Fraction(1, hop)
        self.receptive_field = fft_size // hop - 1
        self.register_buffer("taper", torch.hann_window(fft_size) * (2 * hop / fft_size), persistent=False)

    @property
    def bins(self) -> int:
        """Frequencies of a frame; its width is twice this."""
        return self.fft_size // 2 + 1

    @property
    def inputs(self) -> int:
        """Width of the input frames."""
        return 2 * self.bins

    @property
    def width(self):
        return 1

    def inputs_for(self, outputs):
        return -(-outputs // self.stride)

    def frames(self, length):
        return length * self.stride

    def initial_state(self, batch, device=None, dtype=None):
        device = device or self.taper.device
        overlap = torch.zeros(batch, self.fft_size - self.stride, 1, device=device, dtype=dtype or torch.float32)
        return State(overlap=overlap, emitted=torch.zeros(batch, dtype=torch.int64, device=device))

    def step(self, x, state, lengths=None):
        return self.add(self.windows(x), x, state, lengths)

    def add(self, windows: Tensor, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """A step, given what `windows` makes of its frames x."""
        valid = lengths_of(x, lengths)
        overlap, kept = state["overlap"], self.fft_size - self.stride
        if x.shape[1]:
            if lengths is not None:
                windows = zero_padding(windows, valid)
            size = (x.shape[1] - 1) * self.stride + self.fft_size
            columns = windows.transpose(1, 2)
            added = torch.nn.functional.fold(columns, (1, size), (1, self.fft_size), stride=(1, self.stride))
            wave = added.reshape(x.shape[0], size, 1)
            wave = torch.cat([wave[:, :kept] + overlap, wave[:, kept:]], dim=1)
        else:
            wave = overlap
        emitted = valid * self.stride
        after = State(overlap=slice_rows(wave, emitted, kept), emitted=emitted)
        return wave[:, : x.shape[1] * self.stride], after

    def windows(self, x: Tensor) -> Tensor:
        """Spectra [B, T, 2 x bins] -> windowed samples [B, T, fft_size], in float32."""
        if not x.shape[1]:
            return x.new_zeros(len(x), 0, self.fft_size)
        first, second = x.float().split(self.bins, dim=-1)
        spectrum = (
            torch.complex(first, second) if self.parts else torch.polar(first.clamp(max=self.loudest).exp(), second)
        )
        samples = torch.fft.irfft(spectrum, n=self.fft_size, norm="ortho") * self.taper
        return samples.to(x.dtype)
