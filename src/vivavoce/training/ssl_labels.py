"""Labels of recordings for masked prediction: the k-means cluster of every frame, as HuBERT begins with cepstra and
goes on with its own layers (arXiv:2106.07447, section II.A).

The clusters are fitted when the first label is asked for, unless a checkpoint brings them; the labels of a clip are
those of the whole clip, computed once and kept (2 bytes a frame).
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vivavoce.encoders.base import Encoder, Trunk
from vivavoce.encoders.registry import build_encoder
from vivavoce.encoders.units import UnitTokenizer
from vivavoce.errors import RecipeError


class Labels:
    """encoder: what frames are clustered, as a recipe names it (as `mfcc`); left out, the encoder that is trained as it
    is when the phase begins, at `layer`. frames: of which at most so many are clustered. ratio: of its frame rate to
    the learner's; a learner's frame t has the label of frame floor(t x ratio). standardize, restarts: of the k-means.
    """

    def __init__(
        self,
        clusters: int = 100,
        encoder: Mapping[str, Any] | None = None,
        layer: int | None = None,
        frames: int = 500_000,
        standardize: bool = False,
        restarts: int = 3,
        seed: int = 0,
    ):
        if not isinstance(clusters, int) or clusters < 2:
            raise RecipeError(f"targets.clusters: {clusters!r}: a whole number, at least 2")
        self.clusters, self.layer, self.frames = clusters, layer, frames
        self.standardize, self.restarts, self.seed = standardize, restarts, seed
        self.encoder: Encoder | None = build_encoder(encoder).eval() if encoder is not None else None
        if self.encoder is not None:
            self.encoder.check_layer(layer)
        self.ratio = 1.0
        self.waves: Sequence[Tensor] = ()
        self.units: UnitTokenizer | None = None
        self.kept: dict[int, Tensor] = {}

    def bind(self, trunk: Trunk, waves: Sequence[Tensor]) -> None:
        """What is labelled, for which learner. Raises `RecipeError` where their rates do not go together."""
        if self.encoder is None:
            trunk.check_layer(self.layer)
            self.encoder = copy.deepcopy(trunk).requires_grad_(False).eval()
        if self.encoder.sample_rate != trunk.sample_rate:
            raise RecipeError(f"targets: an encoder at {self.encoder.sample_rate} Hz, the learner {trunk.sample_rate}")
        self.ratio, self.waves = self.encoder.frame_rate / trunk.frame_rate, waves

    def of(self, index: int) -> Tensor:
        """Labels of a clip, one for each of the learner's frames: int64 [T]."""
        if index not in self.kept:
            kind = torch.int16 if self.clusters < 2**15 else torch.int32
            self.kept[index] = self.heard(self.waves[index][0]).to(kind)
        return self.kept[index].long()

    @torch.no_grad()
    def heard(self, wave: Tensor) -> Tensor:
        """Labels of any waveform [samples]."""
        codes = self.fitted().encode([wave[None]])[0, 0]
        return codes[(torch.arange(int(len(codes) / self.ratio)) * self.ratio).long()]

    def fitted(self) -> UnitTokenizer:
        """The clusters, found now if they have not been before."""
        if self.units is None:
            assert self.encoder is not None
            # every so many-th clip where there are more than are needed
            seconds = sum(wave.shape[1] for wave in self.waves) / self.encoder.sample_rate
            every = max(1, int(seconds * self.encoder.frame_rate / (2 * self.frames)))
            heard = (self.waves[i] for i in range(0, len(self.waves), every))
            self.units = UnitTokenizer.fit(
                *(self.encoder, heard, self.clusters, self.layer, None, self.seed, self.frames),
                restarts=self.restarts,
                standardize=self.standardize,
            )
        return self.units

    def state(self) -> dict[str, Tensor]:
        """The clusters, for a checkpoint; nothing if there are none yet."""
        return {} if self.units is None else {"centers": self.units.centers, "scale": self.units.scale}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if state:
            assert self.encoder is not None
            self.units = UnitTokenizer(self.encoder, state["centers"], self.layer, None, state["scale"])
            self.kept = {}
