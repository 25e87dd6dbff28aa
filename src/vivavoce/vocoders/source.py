"""The excitation of a neural source-filter vocoder: a pitch from mel frames, and the sines of its harmonics.

Sources: Wang et al., arXiv:1904.12088 (NSF); HiFTNet, arXiv:2309.09493; cosyvoice/hifigan of FunAudioLLM/CosyVoice.
"""

from fractions import Fraction

import torch
from torch import Tensor, nn

from vivavoce.nn.chance import normal, uniform
from vivavoce.nn.convolution import Conv
from vivavoce.nn.elu import ELU
from vivavoce.nn.streaming import INFINITE, Chain, Pointwise, State, Streaming, lengths_of, zero_padding
from vivavoce.vocoders.hifigan import centred


class Pitch(Chain):
    """Mel frames [B, T, inputs] -> F0 in Hz [B, T, 1], near 0 where nothing is voiced: five convolutions."""

    def __init__(self, inputs: int, width: int, layers: int = 5):
        parts: list[Streaming] = []
        for number in range(layers):
            parts += [centred(width if number else inputs, width, 3), Pointwise(ELU(), width)]
        super().__init__(*parts, Pointwise(Positive(width), 1))


class Positive(nn.Module):
    """x [B, T, D] -> the absolute value of a linear map, [B, T, 1]."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).abs()


class HarmonicSource(Streaming):
    """F0 in Hz [B, T, 1] -> excitation [B, T x hop, 1]: sines at F0 and its `harmonics`, weighted, through tanh.

    A frame is voiced where its F0 is above `voiced` Hz; elsewhere there is noise. The sines' phases go on from frame to
    frame, in float64; where the overtones begin, and all noise, is a hash of the row's `seed` and the place: the same
    for any chunks. In training every signal draws its own seed. No gradient goes to F0.
    """

    receptive_field = INFINITE  # the phase

    def __init__(
        self, sample_rate: int, samples: int, harmonics: int = 8, amplitude: float = 0.1, noise: float = 0.003,
        voiced: float = 10.0,
    ):  # fmt: skip
        super().__init__()
        self.sample_rate, self.samples, self.tones = sample_rate, samples, harmonics + 1
        self.amplitude, self.noise, self.voiced = amplitude, noise, voiced
        self.hop = Fraction(1, samples)
        self.weigh = nn.Linear(self.tones, 1)

    @property
    def width(self):
        return 1

    def inputs_for(self, outputs):
        return -(-outputs // self.samples)

    def frames(self, length):
        return length * self.samples

    def initial_state(self, batch, device=None, dtype=None):
        """`turns` [B] float64: of the fundamental, since the beginning, in 0 .. 1."""
        zero = torch.zeros(batch, dtype=torch.int64, device=self.home(device, dtype)["device"])
        seed = torch.randint_like(zero, 1 << 62) if self.training else zero
        return State(seed=seed, turns=zero.to(torch.float64), heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        count = lengths_of(x, lengths)
        with torch.no_grad():
            hertz = zero_padding(x, count)[..., 0].double()
            ends = state["turns"][:, None] + (hertz * (self.samples / self.sample_rate)).cumsum(1)
            starts = torch.cat([state["turns"][:, None], ends[:, :-1]], dim=1)[:, : x.shape[1]]
            sines = self._sines(hertz, starts, state["seed"], state["heard"]).to(x.dtype)
        last = torch.cat([state["turns"][:, None], ends], dim=1).gather(1, count[:, None])[:, 0]
        after = State(seed=state["seed"], turns=last % 1, heard=state["heard"] + count, emitted=count * self.samples)
        return torch.tanh(self.weigh(sines)), after

    def _sines(self, hertz: Tensor, starts: Tensor, seed: Tensor, first: Tensor) -> Tensor:
        """Of frames [B, T] that follow `first` [B] others and begin at `starts` turns: [B, T x hop, tones]."""
        number = torch.arange(1, self.tones + 1, device=hertz.device)
        inside = torch.arange(1, self.samples + 1, device=hertz.device) / self.sample_rate
        turns = (starts[..., None] + hertz[..., None] * inside).flatten(1)[..., None] * number
        begin = uniform(seed[:, None], torch.zeros_like(number), number) * (number > 1)
        at = (first * self.samples)[:, None] + torch.arange(turns.shape[1], device=hertz.device)
        white = normal(seed[:, None, None], at[..., None], number)
        tones = self.amplitude * torch.sin(2 * torch.pi * ((turns + begin[:, None]) % 1))
        voiced = (hertz > self.voiced).repeat_interleave(self.samples, dim=1)[..., None]
        return torch.where(voiced, tones + self.noise * white, self.amplitude / 3 * white)


class SourceSpectrum(Conv):
    """Waveform [B, S, 1] -> its spectra [B, S / hop + 1, fft_size + 2], real parts, then imaginary ones; Hann windows,
    half of one reflected at both ends (torch.stft with `center`)."""

    taper: Tensor

    def __init__(self, fft_size: int, hop: int):
        half = fft_size // 2
        super().__init__(
            1, fft_size + 2, fft_size, hop, bias=False, left=half, right=half, pad_mode="reflect", complete=False
        )
        self.register_parameter("weight", None)  # only the convolution's bookkeeping is used
        self.register_buffer("taper", torch.hann_window(fft_size), persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        spectrum = torch.fft.rfft(wide[..., 0].unfold(1, self.span, self.stride) * self.taper.to(wide.dtype))
        return torch.cat([spectrum.real, spectrum.imag], dim=-1).to(x.dtype)
