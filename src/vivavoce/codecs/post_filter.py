"""A post-filter: what a codec's decoder gives, made to sound like what it was made of, in the complex spectrum.

Sources: ScoreDec (Wu et al., arXiv:2401.12160), by a diffusion run backwards; FlowDec (Welker et al.,
arXiv:2503.01485), by a flow. Windows are cut and joined as torch.stft and istft do it, with zeros around the signal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.codecs.post_paths import FlowPath, path_of
from vivavoce.errors import RecipeError
from vivavoce.nn.chance import normal
from vivavoce.nn.gathered import WholeSignal
from vivavoce.nn.spectrum_unet import SpectrumUNet
from vivavoce.nn.streaming import State

QUIET = 1e-5  # the peak to which a signal is scaled up at most


@dataclass(frozen=True)
class PostFilterConfig:
    """Sizes; the defaults are FlowDec's. fft_size, hop: of spectra, whose magnitudes are raised to `exponent` and
    multiplied by `scale` (until it is measured). path: of `path_of`. The rest: of `SpectrumUNet`."""

    fft_size: int = 1534
    hop: int = 384
    exponent: float = 0.3
    scale: float = 0.33
    path: Mapping[str, Any] = field(default_factory=lambda: {"kind": "flow"})
    width: int = 64
    multiples: tuple[int, ...] = (4, 4, 4, 2)
    blocks: int = 1
    attention: bool = False
    last_kernel: int = 1

    def __post_init__(self):
        if self.fft_size % 2 or not 0 < 2 * self.hop <= self.fft_size or min(self.exponent, self.scale) <= 0:
            raise RecipeError(f"filter: fft_size {self.fft_size}, hop {self.hop}, exponent {self.exponent}, scale "
                              f"{self.scale}: an even size, at least two hops, the others above 0")  # fmt: skip
        if self.bins % 2 ** (len(self.multiples) - 1):
            raise RecipeError(
                f"filter: fft_size {self.fft_size} has {self.bins} bins, which {len(self.multiples)} levels cannot "
                "halve: choose twice a multiple of their stride, less two"
            )

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.fft_size // 2 + 1


class CompressedSpectrum(nn.Module):
    """Waveforms [B, S] -> complex spectra [B, bins, 1 + S // hop] of compressed magnitudes, and back."""

    window: Tensor
    scale: Tensor

    def __init__(self, config: PostFilterConfig):
        super().__init__()
        self.fft_size, self.hop, self.exponent = config.fft_size, config.hop, config.exponent
        self.register_buffer("window", torch.hann_window(config.fft_size, periodic=False), persistent=False)
        self.register_buffer("scale", torch.tensor(config.scale))

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave.float(), self.fft_size, self.hop, window=self.window.float(), pad_mode="constant", return_complex=True
        )
        return self.scale * torch.polar(spectrum.abs() ** self.exponent, spectrum.angle())

    def back(self, spectrum: Tensor, samples: int) -> Tensor:
        """Waveforms [B, samples] of spectra as `forward` gives them."""
        plain = spectrum / self.scale
        plain = torch.polar(plain.abs() ** (1 / self.exponent), plain.angle())
        return torch.istft(plain, self.fft_size, self.hop, window=self.window.float(), length=samples)


class PostFilter(WholeSignal):
    """Coded waveforms [B, S, 1] -> better ones [B, S, 1], at the signal's end: its loudest sample and the network's
    norms are of all that is heard together.

    The noise is a hash of the row's `seed` and of bin, frame and draw. Rows of the same length go through the network
    together. A second at 48 kHz takes about a gigabyte at the published size.
    """

    inputs = 1

    def __init__(self, config: PostFilterConfig):
        super().__init__()
        c = self.config = config
        self.spectrum, self.path = CompressedSpectrum(c), path_of(c.path, c.bins)
        self.network = SpectrumUNet(c.width, c.multiples, c.blocks, c.attention, c.last_kernel)

    @property
    def width(self):
        return 1

    def initial_state(self, batch, device=None, dtype=None):
        """As any `WholeSignal`'s, with a `seed` [B] of each row's noise: 0, in training by torch's generator."""
        state = super().initial_state(batch, device, dtype)
        zero = state["held"]
        state["seed"] = torch.randint_like(zero, 1 << 62) if self.training else zero
        return state

    def step(self, x, state, lengths=None):
        y, after = super().step(x, state, lengths)
        return y, State({**after, "seed": state["seed"]})

    def flush(self, state, rows=None):
        """The answer to all that was heard."""
        held = state["held"] if rows is None else state["held"] * rows.to(state["held"].device)
        most = int(held.max()) if held.numel() else 0
        if most == 0:
            return self.nothing(state)
        y = state["waiting"].new_zeros(len(held), most, 1)
        for length in held.unique().tolist():
            alike = held == length
            if length:
                y[alike, :length, 0] = self.filtered(state["waiting"][alike, :length, 0], state["seed"][alike]).to(y)
        return y, State({**state, "emitted": held})

    def filtered(self, coded: Tensor, seed: Tensor) -> Tensor:
        """Coded waveforms [B, S] with the noise of seeds [B] -> better ones [B, S], float32."""
        loud = _peak(coded)
        spectrum = self.features(coded / loud)
        white = partial(noise, seed, (spectrum.shape[1], spectrum.shape[2]))
        found = self.path.solve(self.network, spectrum, white)
        return loud * self.spectrum.back(found, coded.shape[-1])

    def features(self, wave: Tensor) -> Tensor:
        """Compressed spectra of waveforms [B, S]; zeros behind them make their number one that the network takes."""
        found = self.spectrum(wave)
        return nn.functional.pad(found, (0, -found.shape[-1] % self.network.stride))

    def pair(self, clean: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        """Compressed spectra of waveforms [B, S] each, both scaled by the peak of what was coded."""
        loud = _peak(coded)
        return self.features(clean / loud), self.features(coded / loud)

    def loss(self, clean: Tensor, coded: Tensor) -> Tensor:
        """Mean squared distance of what the network says to what it should, of waveforms [B, S] each. Times and noise
        are drawn from torch's generator."""
        with torch.no_grad():
            target, given = self.pair(clean, coded)
            times = self.path.times(torch.rand(len(given), device=given.device))
            noisy, answer = self.path.lesson(target, given, times, torch.randn_like(given))
        return (self.network(noisy, given, times) - answer).abs().square().mean()

    @torch.no_grad()
    def measure(self, clean: Tensor, coded: Tensor, quantile: float = 0.997) -> None:
        """Set `scale` and a flow's deviations by waveforms [N, S] each (FlowDec, section 3.5 and appendix A.1;
        scripts/estimate_flowdec_params.py): nearly all magnitudes come to lie below 1, and noise in a bin has a third
        of nearly the greatest distance that coding leaves there, averaged over its neighbours."""
        self.spectrum.scale.fill_(1)
        pairs = [self.pair(one[None], other[None]) for one, other in zip(clean, coded)]
        magnitudes = torch.cat([target.abs().flatten() for target, _ in pairs])
        if isinstance(self.path, FlowPath):
            apart = torch.cat([(target - given).abs().square().mean(-1).sqrt() for target, given in pairs])
            self.path.deviation.copy_(_smooth(_quantile(apart, quantile) / 3).clamp(min=QUIET))
        self.spectrum.scale.copy_(1 / _quantile(magnitudes, quantile).clamp(min=QUIET))


def noise(seed: Tensor, shape: tuple[int, int], number: int) -> Tensor:
    """Complex noise of variance 1 [B, bins, frames], draw `number` of rows with `seed` [B]."""
    bins, frames = shape
    at = torch.arange(frames, device=seed.device)
    index = 2 * (number * bins + torch.arange(bins, device=seed.device)[:, None])
    real, imaginary = (normal(seed[:, None, None], at, index + part) for part in range(2))
    return 0.5**0.5 * torch.complex(real, imaginary)


def _peak(wave: Tensor) -> Tensor:
    """[B, S] -> [B, 1]."""
    return wave.abs().amax(-1, keepdim=True).clamp(min=QUIET)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Over the first dimension, the value below which that share lies. (torch.quantile takes up to 16 million.)"""
    return values.sort(dim=0).values[round(share * (len(values) - 1))]


def _smooth(curve: Tensor, deviation: float = 3.0) -> Tensor:
    """A curve [N] averaged by a Gaussian window of that deviation, its ends repeated."""
    reach = round(4 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=curve.device) / deviation) ** 2)
    padded = nn.functional.pad(curve[None, None], (reach, reach), mode="replicate")
    return nn.functional.conv1d(padded, (weights / weights.sum())[None, None])[0, 0]
