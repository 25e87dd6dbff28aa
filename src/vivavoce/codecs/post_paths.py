"""Ways from coded spectra to clean ones that a network is to learn: a flow from noise, and a diffusion run backwards.

Each says what the network hears and what it is to answer while it learns, and solves its equation with a network that
has learned. Spectra are complex [B, bins, frames]; noise is complex, of variance 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.schema.parts import build_part

# (noisy, coded, times [B]) -> spectrum; the number of a draw -> noise
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]

SOLVERS = ("euler", "midpoint")


class FlowPath(nn.Module):
    """A straight way from the coded spectrum and noise to the clean spectrum, in `steps` of a solver: one evaluation
    each by Euler's, two by the midpoint rule (FlowDec, arXiv:2503.01485, section 3; flowdec/model.py).

    deviation: of the noise, in every bin, until it is measured.
    """

    deviation: Tensor

    def __init__(self, bins: int, steps: int = 3, solver: str = "midpoint", deviation: float = 0.66):
        super().__init__()
        if steps < 1 or solver not in SOLVERS or deviation <= 0:
            raise RecipeError(f"flow of {steps} steps, solver {solver!r}, deviation {deviation}: steps from 1, one of "
                              f"{', '.join(SOLVERS)}, a deviation above 0")  # fmt: skip
        self.steps, self.solver = steps, solver
        self.register_buffer("deviation", torch.full((bins,), float(deviation)))

    @property
    def evaluations(self) -> int:
        """Of the network, for one signal."""
        return self.steps * (2 if self.solver == "midpoint" else 1)

    def times(self, chance: Tensor) -> Tensor:
        """Times to learn from uniform numbers."""
        return chance

    def begun(self, coded: Tensor, noise: Tensor) -> Tensor:
        """Where the way begins."""
        return coded + self.deviation[:, None].to(coded.real.dtype) * noise

    def lesson(self, clean: Tensor, coded: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The place on the way at times [B], and the velocity there."""
        start, share = self.begun(coded, noise), times[:, None, None]
        return (1 - share) * start + share * clean, clean - start

    def solve(self, network: Network, coded: Tensor, noise: Noise) -> Tensor:
        """Where the network's velocities lead."""
        x, size = self.begun(coded, noise(0)), 1 / self.steps
        for step in range(self.steps):
            now = torch.full((len(x),), step * size, device=x.device)
            velocity = network(x, coded, now)
            if self.solver == "midpoint":
                velocity = network(x + size / 2 * velocity, coded, now + size / 2)
            x = x + size * velocity
        return x


class ScorePath(nn.Module):
    """An Ornstein-Uhlenbeck diffusion of exploding variance, dx = g (y - x) dt + s(t) dw, that drifts from the clean
    spectrum to the coded one y; backwards by a corrector and a predictor in each of `steps` (SGMSE+, arXiv:2208.05830,
    sections III and IV; ScoreDec, arXiv:2401.12160; flowdec/sdes.py and flowdec/sampling of facebookresearch/FlowDec).

    stiffness: g. least, most: s(t) = least (most / least)^t sqrt(2 ln(most / least)). correct: signal to noise of the
    corrector's steps of annealed Langevin dynamics. end: the time at which the way back ends, above 0.
    """

    def __init__(
        self, bins: int, steps: int = 30, stiffness: float = 1.5, least: float = 0.05, most: float = 0.5,
        correct: float = 0.5, end: float = 0.03,
    ):  # fmt: skip
        super().__init__()
        if steps < 1 or not 0 < least < most or stiffness <= 0 or correct < 0 or not 0 < end < 1:
            raise RecipeError(
                f"score of {steps} steps, stiffness {stiffness}, least {least}, most {most}, correct {correct}, "
                f"end {end}: steps from 1, above 0, the least the smaller, an end below 1"
            )
        self.steps, self.stiffness, self.least, self.most = steps, stiffness, least, most
        self.correct, self.end = correct, end
        self.growth = math.log(most / least)

    @property
    def evaluations(self) -> int:
        """Of the network, for one signal."""
        return 2 * self.steps

    def times(self, chance: Tensor) -> Tensor:
        """Times to learn from uniform numbers: from the end on."""
        return self.end + (1 - self.end) * chance

    def spread(self, times: Tensor) -> Tensor:
        """Standard deviation of the noise at times of any shape (SGMSE+, equation 10)."""
        both = self.stiffness + self.growth
        grown = torch.exp(2 * self.growth * times) - torch.exp(-2 * self.stiffness * times)
        return self.least * (self.growth / both * grown).sqrt()

    def lesson(self, clean: Tensor, coded: Tensor, times: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy spectrum at times [B], and its noise, of which the score is -1 / spread."""
        near = torch.exp(-self.stiffness * times)[:, None, None]
        return near * clean + (1 - near) * coded + self.spread(times)[:, None, None] * noise, noise

    def solve(self, network: Network, coded: Tensor, noise: Noise) -> Tensor:
        """Where the way back leads; what its last step would add of noise is left out."""
        size = 1 / self.steps
        times = torch.linspace(1, self.end, self.steps, device=coded.device)
        spreads = self.spread(times)
        clean = x = coded + spreads[0] * noise(0)
        for step, (time, spread) in enumerate(zip(times, spreads)):
            now = time.expand(len(x))
            width = 2 * (self.correct * spread) ** 2
            x = x - width / spread * network(x, coded, now) + (2 * width).sqrt() * noise(2 * step + 1)
            blown = (self.least * torch.exp(self.growth * time)) ** 2 * 2 * self.growth * size
            clean = x - self.stiffness * size * (coded - x) - blown / spread * network(x, coded, now)
            x = clean + blown.sqrt() * noise(2 * step + 2)
        return clean


PATHS: Mapping[str, Callable[..., Any]] = {"flow": FlowPath, "score": ScorePath}


def path_of(options: Mapping[str, Any], bins: int) -> FlowPath | ScorePath:
    """The path of `{"kind": flow | score, **options}` over so many bins. Raises `RecipeError`."""
    return build_part("codec.filter.path", PATHS, {"bins": bins, **options})
