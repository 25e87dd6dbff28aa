"""Units of speech by k-means: the clusters of an encoder's frames, as a phase of a recipe."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import DataError
from vivavoce.quantizers import nearest
from vivavoce.training.fit import FitTask


class KMeansTask(FitTask):
    """Fit the centers of the `units` of `codec` to the frames of `waves` (each [1, samples] at its rate).

    steps: mini-batches of `batch` frames at most. frames: how many frames are kept of a larger corpus, a uniform
    sample. restarts: starts of which the best is taken. standardize: as
    `UnitTokenizer.fit` has it. A voice that the codec already has must learn anew.
    """

    def __init__(
        self,
        name: str,
        codec: Any,
        waves: Sequence[Tensor],
        steps: int = 1000,
        batch: int = 10_000,
        frames: int = 2_000_000,
        restarts: int = 3,
        standardize: bool = False,
        seed: int = 0,
    ):
        if not hasattr(codec, "units"):
            raise TypeError(f"kmeans fits a tokenizer of units, not a {type(codec).__name__}")
        self.name, self.codec, self.waves = name, codec, waves
        self.steps, self.size, self.frames, self.restarts, self.seed = steps, batch, frames, restarts, seed
        self.standardize = standardize

    def modules(self) -> Mapping[str, nn.Module]:
        return {"codec": self.codec}

    def fit(self) -> Mapping[str, float]:
        """Mean squared distance of a frame from its center (`error`), and the perplexity of the units' use."""
        old = self.codec.units
        if not len(self.waves):
            raise DataError(f"training.{self.name}: no recordings to find units in")
        seconds = sum(wave.shape[1] for wave in self.waves) / old.sample_rate
        points = min(self.frames, max(1, int(seconds * old.frame_rate)))
        found = UnitTokenizer.fit(
            *(old.encoder.eval(), self.waves, len(old.centers), old.layer, old.config, self.seed, self.frames),
            batch=self.size,
            passes=max(1, math.ceil(self.steps * self.size / points)),
            restarts=self.restarts,
            standardize=self.standardize,
            points=old.points,
        )
        old.take(found.centers, found.scale)
        return self._health()

    @torch.no_grad()
    def _health(self, clips: int = 200) -> Mapping[str, float]:
        """Of the units of some of the waves."""
        units = self.codec.units
        some = self.waves[:: max(1, len(self.waves) // clips)]
        counts, error, total = torch.zeros(units.codebook_size), 0.0, 0
        for wave in some:
            values = units.encoder.features([wave], layer=units.layer).values[0]
            codes = units.encode([wave])[0, 0, : len(values)]
            counts += torch.bincount(codes, minlength=units.codebook_size)
            points = units.points(values) * units.scale
            error += float((points - units.centers[nearest(points, units.centers)]).square().sum())
            total += len(points)
        share = counts / counts.sum().clamp(min=1)
        entropy = -(share * share.clamp(min=1e-12).log()).sum()
        return {"error": error / max(total, 1), "perplexity": float(entropy.exp())}
