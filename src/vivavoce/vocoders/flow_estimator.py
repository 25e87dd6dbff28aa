"""The network of a flow-matching decoder: causal convolutions and transformer blocks over chunks, told the time.

Source: CosyVoice 2 (arXiv:2412.10117, section 2.3; cosyvoice/flow/decoder.py of FunAudioLLM/CosyVoice), a U-Net of one
level after Matcha-TTS (arXiv:2309.03199).
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.nn.chunks import ChunkLayer
from vivavoce.nn.convolution import Conv
from vivavoce.nn.streaming import State, Streaming, lengths_of

TIME_SCALE = 1000.0  # of times in 0 .. 1, before their sines


class TimedBlock(nn.Module):
    """Two causal convolutions with norms, told the time between them, beside a linear map; then transformer blocks."""

    def __init__(self, inputs: int, width: int, heads: int, head_dim: int, blocks: int, chunk: int, left: int):
        super().__init__()
        self.first, self.second = Conv(inputs, width, 3), Conv(width, width, 3)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time, self.skip = nn.Linear(4 * width, width), nn.Linear(inputs, width)
        sizes = (width, heads, 4 * width, chunk, left)
        self.blocks = nn.ModuleList(
            ChunkLayer(*sizes, head_dim=head_dim, bias=False, key_bias=False) for _ in range(blocks)
        )

    @property
    def layers(self) -> list[ChunkLayer]:
        """The transformer blocks, by their type."""
        return cast(list[ChunkLayer], list(self.blocks))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """Of both convolutions and of each transformer block."""
        parts: dict[str, Streaming] = {str(i): block for i, block in enumerate(self.layers)}
        parts |= {"first": self.first, "second": self.second}
        return State({name: part.initial_state(batch, device, dtype) for name, part in parts.items()})

    def step(self, x: Tensor, time: Tensor, state: State, lengths: Tensor, whole: bool) -> tuple[Tensor, State]:
        """x [B, T, inputs], time [B, 4 x width] -> [B, T, width]."""
        after = State()
        y, after["first"] = self.first.step(x, state["first"], lengths)
        y = F.mish(self.first_norm(y)) + self.time(F.mish(time))[:, None]
        y, after["second"] = self.second.step(y, state["second"], lengths)
        x = F.mish(self.second_norm(y)) + self.skip(x)
        for i, block in enumerate(self.layers):
            x, after[str(i)] = block.step(x, state[str(i)], lengths, whole)
        return x, after


class FlowEstimator(nn.Module):
    """Where noisy frames flow to: x [B, T, inputs] at times [B] in 0 .. 1 -> velocities [B, T, outputs].

    width: of the convolutions; heads x head_dim: of attention. blocks: transformer blocks a stage; middle: stages
    between the first and the last, which hears both ends. chunk, left: frames of a chunk, and how many chunks before
    its own a frame sees. Whole chunks at a time; only the last may be short.
    """

    def __init__(
        self,
        inputs: int = 320,
        outputs: int = 80,
        width: int = 256,
        heads: int = 8,
        head_dim: int = 64,
        blocks: int = 4,
        middle: int = 12,
        chunk: int = 50,
        left: int = 2,
    ):
        super().__init__()
        self.inputs = inputs
        sizes = (width, heads, head_dim, blocks, chunk, left)
        self.time = nn.Sequential(nn.Linear(inputs, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.down, self.up = TimedBlock(inputs, *sizes), TimedBlock(2 * width, *sizes)
        self.middle = nn.ModuleList(TimedBlock(width, *sizes) for _ in range(middle))
        self.behind_down, self.behind_up, self.last = (Conv(width, width, 3) for _ in range(3))
        self.last_norm, self.out = nn.LayerNorm(width), nn.Linear(width, outputs)

    @property
    def between(self) -> list[TimedBlock]:
        """The stages in the middle, by their type."""
        return cast(list[TimedBlock], list(self.middle))

    def initial_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """Of rows of which nothing has been heard."""
        parts: dict[str, Streaming | TimedBlock] = {f"middle{i}": block for i, block in enumerate(self.between)}
        parts |= {"down": self.down, "up": self.up, "last": self.last}
        parts |= {"behind_down": self.behind_down, "behind_up": self.behind_up}
        return State({name: part.initial_state(batch, device, dtype) for name, part in parts.items()})

    def step(
        self, x: Tensor, times: Tensor, state: State, lengths: Tensor | None = None, whole: bool = False
    ) -> tuple[Tensor, State]:
        """See the class. whole: attention of every frame to all others, in one step from a fresh state."""
        lengths, after = lengths_of(x, lengths), State()
        time = self.time(sines(times, self.inputs).to(x.dtype))
        skip, after["down"] = self.down.step(x, time, state["down"], lengths, whole)
        x, after["behind_down"] = self.behind_down.step(skip, state["behind_down"], lengths)
        for i, block in enumerate(self.between):
            x, after[f"middle{i}"] = block.step(x, time, state[f"middle{i}"], lengths, whole)
        x, after["up"] = self.up.step(torch.cat([x, skip], dim=-1), time, state["up"], lengths, whole)
        x, after["behind_up"] = self.behind_up.step(x, state["behind_up"], lengths)
        x, after["last"] = self.last.step(x, state["last"], lengths)
        return self.out(F.mish(self.last_norm(x))), after


def sines(times: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of 1000 x times [B], of rates from 1 down to 1 / 10,000: [B, width]."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(10000) / max(half - 1, 1)))
    angles = TIME_SCALE * times[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
