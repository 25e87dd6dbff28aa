"""HiFT: mel frames to waveform by a source of harmonics, snake residual blocks and an inverse STFT, as a stream.

Source: HiFTNet (Li et al., arXiv:2309.09493) as CosyVoice has it (arXiv:2407.05407, section 2.3;
cosyvoice/hifigan/generator.py of FunAudioLLM/CosyVoice). Chunks give the waveform of the whole: all look-ahead is
finite and known, and the phases of the source go on. (The published stream computes eight mel frames twice and fades.)
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.convolution import Conv, ConvTranspose
from vivavoce.nn.parallel import Sum
from vivavoce.nn.residual import Residual
from vivavoce.nn.snake import Snake
from vivavoce.nn.streaming import (
    Chain,
    Pointwise,
    State,
    Streaming,
    join_rows,
    lengths_of,
    slice_rows,
    widened,
    zero_padding,
)
from vivavoce.vocoders.hifigan import LAST_SLOPE, SLOPE, LeakyReLU, centred
from vivavoce.vocoders.istft import TrimmedISTFT
from vivavoce.vocoders.source import HarmonicSource, Pitch, SourceSpectrum

LIMIT = 0.99  # of the waveform


@dataclass(frozen=True)
class HiFTConfig:
    """Sizes; the defaults are CosyVoice 2's: 480 samples a frame at 24 kHz. Widths halve with every upsampling.

    rates, kernels: of the upsampling, before spectra of `fft_size` every `hop` samples. residual_…: of the blocks
    behind each; source_…: of the block through which the source enters there. harmonics: besides the fundamental;
    pitch_width: of the F0 predictor; voiced: Hz above which a frame is voiced.
    """

    inputs: int = 80
    width: int = 512
    sample_rate: int = 24000
    rates: tuple[int, ...] = (8, 5, 3)
    kernels: tuple[int, ...] = (16, 11, 7)
    fft_size: int = 16
    hop: int = 4
    residual_kernels: tuple[int, ...] = (3, 7, 11)
    residual_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_kernels: tuple[int, ...] = (7, 7, 11)
    source_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    harmonics: int = 8
    pitch_width: int = 512
    amplitude: float = 0.1
    noise: float = 0.003
    voiced: float = 10.0

    def __post_init__(self):
        stages = {len(self.rates), len(self.kernels), len(self.source_kernels), len(self.source_dilations)}
        if len(stages) > 1 or not self.rates:
            raise RecipeError("hift: rates, kernels, source_kernels, source_dilations: one entry each for every stage")
        if len(self.residual_kernels) != len(self.residual_dilations) or not self.residual_kernels:
            raise RecipeError("hift: residual_kernels and residual_dilations: one list of dilations for each kernel")
        if any((kernel - rate) % 2 for rate, kernel in zip(self.rates, self.kernels)):
            raise RecipeError("hift: an upsampling kernel and its rate are both even or both odd")
        if self.width % 2 ** len(self.rates):
            raise RecipeError(f"hift: width {self.width} cannot be halved {len(self.rates)} times")

    @property
    def samples(self) -> int:
        """Samples a frame."""
        return math.prod(self.rates) * self.hop


def snake_residuals(width: int, kernel: int, dilations: tuple[int, ...]) -> Chain:
    """For each dilation x + conv(snake(conv(snake(x)))), the first convolution dilated."""
    return Chain(
        *(
            Residual(
                Chain(
                    Pointwise(Snake(width), width),
                    centred(width, width, kernel, dilation),
                    Pointwise(Snake(width), width),
                    centred(width, width, kernel),
                )
            )
            for dilation in dilations
        )
    )


class MirroredStart(Streaming):
    """Frames x_0, x_1, … [B, T, D] -> x_1, x_0, x_1, …: one more than there were."""

    warmup = 2

    def __init__(self, width: int):
        super().__init__()
        self._width = width

    @property
    def width(self):
        return self._width

    def inputs_for(self, outputs):
        return max(2, outputs - 1)

    def needs(self, first, last):
        return first - 1, last - 1

    def frames(self, length):
        return length + (length > 0)

    def initial_state(self, batch, device=None, dtype=None):
        """`first` [B, 1, D]: the frame that waits for the second one, `heard` [B] frames in all."""
        home = self.home(device, dtype)
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        return State(first=torch.zeros(batch, 1, self.width, **home), heard=zero, emitted=zero)

    def step(self, x, state, lengths=None):
        count = lengths_of(x, lengths)
        heard = state["heard"] + count
        waits = (state["heard"] == 1).long()
        joined, total = join_rows([(state["first"], waits), (x, count)])
        starts = (state["heard"] < 2) & (heard >= 2)
        second = slice_rows(joined, starts.long(), 1)
        y, emitted = join_rows([(second, starts.long()), (joined, total * (heard >= 2))])
        kept = torch.where((heard == 1)[:, None, None], zero_padding(slice_rows(joined, 0 * total, 1), total), 0)
        return y, State(first=kept.to(x.dtype), heard=heard, emitted=emitted)

    def flush(self, state, rows=None):
        """A frame that never had a second one stands twice."""
        alone = state["heard"] == 1
        alone = alone if rows is None else alone & rows.to(alone.device)
        return state["first"].expand(-1, 2, -1), State({**state, "emitted": 2 * alone})


class HiFT(Streaming):
    """Mel frames [B, T, inputs] -> waveform [B, T x samples, 1] in [-0.99, 0.99]."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        c = self.config = config
        self.sample_rate = c.sample_rate
        self.hop = Fraction(1, c.samples)
        bins = c.fft_size + 2
        self.pitch = Pitch(c.inputs, c.pitch_width)
        source = HarmonicSource(c.sample_rate, c.samples, c.harmonics, c.amplitude, c.noise, c.voiced)
        self.source = Chain(source, SourceSpectrum(c.fft_size, c.hop))
        width, before = c.width, math.prod(c.rates)
        self.up, self.enter, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(c.rates, c.kernels)):
            parts: list[Streaming] = [] if stage else [centred(c.inputs, width, 7)]
            trim, before = (kernel - rate) // 2, before // rate
            parts += [Pointwise(LeakyReLU(SLOPE), width), ConvTranspose(width, width // 2, kernel, rate, 1, True, trim)]
            width //= 2
            if stage + 1 == len(c.rates):
                parts.append(MirroredStart(width))
            self.up.append(Chain(*parts))
            edge = before // 2
            down = (
                Conv(bins, width, 1) if before == 1
                else Conv(bins, width, 2 * before, before, left=edge, right=edge, complete=False)
            )  # fmt: skip
            self.enter.append(Chain(down, snake_residuals(width, c.source_kernels[stage], c.source_dilations[stage])))
            stacks = [snake_residuals(width, *sizes) for sizes in zip(c.residual_kernels, c.residual_dilations)]
            self.blocks.append(Sum(stacks, scale=1 / len(stacks)))
        self.last = Chain(
            Pointwise(LeakyReLU(LAST_SLOPE), width),
            centred(width, bins, 7),
            Pointwise(SinePhase(bins // 2), bins),
            TrimmedISTFT(c.fft_size, c.hop, c.fft_size // 2),
            Pointwise(Limit(), 1),
        )
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Upsampling, residual blocks and the last convolution begin from N(0, 0.01), as in HiFi-GAN."""
        for part in (*self.up, *self.enter, *self.blocks, self.last):
            for module in part.modules():
                if isinstance(module, Conv | ConvTranspose) and module.inputs not in (self.config.inputs,
                                                                                      self.config.fft_size + 2):
                    module.weight.normal_(0.0, 0.01)

    @property
    def width(self):
        return 1

    def frames(self, length):
        return length * self.config.samples

    def _paths(self) -> list[list[Streaming]]:
        """Every way from the mel frames to the waveform."""
        stages = range(len(self.up))
        behind = [[part for later in stages[stage + 1 :] for part in (self.up[later], self.blocks[later])]
                  for stage in stages]  # fmt: skip
        own = [[self.pitch, self.source, self.enter[stage], self.blocks[stage], *behind[stage]] for stage in stages]
        return [[*path, self.last] for path in ([self.up[0], self.blocks[0], *behind[0]], *own)]  # type: ignore[list-item]

    def inputs_for(self, outputs):
        found = []
        for path in self._paths():
            wanted = outputs
            for part in reversed(path):
                wanted = part.inputs_for(wanted)
            found.append(wanted)
        return max(found)

    def needs(self, first, last):
        found = []
        for path in self._paths():
            reach = (first, last)
            for part in reversed(path):
                reach = part.needs(*reach)
            found.append(reach)
        return min(early for early, _ in found), max(late for _, late in found)

    @property
    def lookahead(self):  # type: ignore[override]
        return max(self.needs(0, self.config.samples - 1)[1], 0)

    @property
    def receptive_field(self):  # type: ignore[override]
        return -self.needs(0, 0)[0]

    @property
    def warmup(self):  # type: ignore[override]
        return self.inputs_for(1)

    def parts(self) -> dict[str, Streaming]:
        """All parts that have a state, by name."""
        stages = range(len(self.up))
        kinds = {"up": self.up, "enter": self.enter, "blocks": self.blocks}
        several = {f"{name}{stage}": part[stage] for stage in stages for name, part in kinds.items()}
        return {"pitch": self.pitch, "source": self.source, **several, "last": self.last}  # type: ignore[dict-item]

    def initial_state(self, batch, device=None, dtype=None):
        """Besides those of the parts, for each stage `waiting{i}`: what only one of its two inputs has given."""
        home = self.home(device, dtype)
        state = State({name: part.initial_state(batch, **home) for name, part in self.parts().items()})
        zero = torch.zeros(batch, dtype=torch.int64, device=home["device"])
        for stage in range(len(self.up)):
            width = self.config.width >> (stage + 1)
            nothing = torch.zeros(batch, 0, width, **home)
            state[f"waiting{stage}"] = State(main=nothing, main_held=zero, side=nothing, side_held=zero)
        state["emitted"] = zero
        return state

    def step(self, x, state, lengths=None):
        return self._walk(x, lengths_of(x, lengths), state, False, None)

    def flush(self, state, rows=None):
        nothing = torch.zeros(state.batch, 0, self.config.inputs, **self.home())
        return self._walk(nothing, state.emitted * 0, state, True, rows)

    def _walk(self, x: Tensor, lengths: Tensor, state: State, ending: bool, rows: Tensor | None):
        """A step of all parts; where the signal is `ending`, each is flushed behind what those before it released."""
        after, parts = State(), self.parts()

        def through(name: str, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            y, after[name] = parts[name].step(x, state[name], lengths)
            told = after[name].emitted
            if ending:
                rest, after[name] = parts[name].flush(after[name], rows)
                return join_rows([(y, told), (rest.to(y.dtype), after[name].emitted)])
            return y, told

        spectra = through("source", *through("pitch", x, lengths))
        main = x, lengths
        for stage in range(len(self.up)):
            sides = through(f"up{stage}", *main), through(f"enter{stage}", *spectra)
            met, total, after[f"waiting{stage}"] = _meet(*sides, state[f"waiting{stage}"])
            main = through(f"blocks{stage}", met, total)
        y, after["emitted"] = through("last", *main)
        return y, after


def _meet(main: tuple[Tensor, Tensor], side: tuple[Tensor, Tensor], waiting: State) -> tuple[Tensor, Tensor, State]:
    """The sum of two inputs as far as both are there, its lengths [B], and what waits."""
    queues = [join_rows([(waiting[name], waiting[f"{name}_held"]), new]) for name, new in
              (("main", main), ("side", side))]  # fmt: skip
    total = torch.minimum(queues[0][1], queues[1][1])
    most = int(total.max()) if total.numel() else 0
    after = State()
    for name, (queue, there) in zip(("main", "side"), queues):
        left = there - total
        rest = slice_rows(zero_padding(queue, there), total, int(left.max()) if left.numel() else 0)
        after[name], after[f"{name}_held"] = widened([rest, waiting[name]])[0], left
    return queues[0][0][:, :most] + queues[1][0][:, :most], total, after


class SinePhase(nn.Module):
    """Frames of log-magnitudes and phases with the sine of the phases in their place (as published)."""

    def __init__(self, bins: int):
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., : self.bins], x[..., self.bins :].sin()], dim=-1)


class Limit(nn.Module):
    """x within -0.99 .. 0.99."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-LIMIT, LIMIT)
