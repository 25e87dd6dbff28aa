"""EAT's objective: hidden patches, and the whole utterance, from the visible ones (arXiv:2401.03497, section 3;
cwx-worst-one/EAT)."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.mel_patches import MelPatches
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid, zero_padding
from vivavoce.training.ssl_masking import only, put_back
from vivavoce.training.ssl_regression import ManyMasks, spreads
from vivavoce.training.ssl_teacher import Teacher, squared_distance


class UtteranceAndFrames(ManyMasks):
    """data2vec 2.0 over patches; beside its loss, `utterance` times the squared distance of what becomes of the pupil's
    first learned vector from the mean of the teacher's targets over the row.

    The teacher follows the whole encoder. Its targets are normed once more, each over its dimensions. The mask's blocks
    and the decoder's convolutions are square. The authors' code sums the utterances' distances over the rows of a
    batch; here they are averaged, as in the paper.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        average: int = 12,
        decays: tuple[float, float, int] = (0.9998, 0.99999, 100_000),
        freeze: int | None = None,
        clones: int = 16,
        noise: float = 0.01,
        decoder: Mapping[str, Any] | None = None,
        utterance: float = 1.0,
    ):
        if not isinstance(trunk, MelPatches):
            raise RecipeError("objective: an utterance's vector is learned by an encoder of kind mel_patches")
        squares = {"kind": "squares", "prob": 0.8, "adjust": 0.07, "bands": trunk.bands}
        super().__init__(trunk, {**squares, **(mask or {})}, average, decays, freeze, clones=clones, noise=noise)
        self.teacher = Teacher(trunk, average, decays, freeze, shared=())
        self.decoder = GridDecoder(trunk.width, trunk.bands, **(decoder or {}))
        self.utterance = utterance

    def targets(self, x: Tensor, counts: Tensor) -> Tensor:
        """Of patches as they are [B, T, C]: [B, T, D], zero beyond counts [B]."""
        teacher = self.teacher.trunk
        if teacher is None:
            raise RecipeError("objective: the teacher has not begun: call before_step first")
        with torch.no_grad():
            mean = super().targets(teacher.embed(x), counts)
            return zero_padding(F.layer_norm(mean, mean.shape[-1:]), counts)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert isinstance(trunk, MelPatches)
        if self.teacher.trunk is None:  # shown a batch before the first step
            self.teacher.follow(trunk, step)
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        goals = self.targets(frames, counts)
        middle = (goals.sum(1) / counts.clamp(min=1)[:, None]).repeat_interleave(self.clones, 0)
        x, counts, hidden, noise = self.cloned(trunk.embed(frames), counts, batch["seeds"])
        goals = goals.repeat_interleave(self.clones, 0)[hidden]
        shown = valid(counts, x.shape[1]) & ~hidden
        heard, some, at = only(trunk.place(x, counts), shown)
        y = trunk.with_first(heard, some)
        found = self.decoder(put_back(y[:, 1:], at, shown, noise), counts)
        frame, whole = squared_distance(found[hidden], goals), squared_distance(y[:, 0], middle)
        return {
            "loss": frame + self.utterance * whole,
            "frames": frame.detach(),
            "utterance": whole.detach(),
            **spreads(goals, y[:, 0]),
        }


class GridDecoder(nn.Module):
    """As `ConvolutionDecoder`, over the grid of patches, `bands` to a column: convolutions of `kernel` by `kernel`."""

    def __init__(self, width: int, bands: int, inner: int = 768, layers: int = 6, kernel: int = 3, groups: int = 16):
        super().__init__()
        sizes = [width, *[inner] * layers]
        self.bands = bands
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups) for before, after in pairwise(sizes)
        )
        self.back = nn.Linear(sizes[-1], width)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Patches [B, T, width] -> the same shape."""
        inside = valid(counts, x.shape[1])[..., None]
        for layer in self.layers:
            grid = (x * inside).unflatten(1, (-1, self.bands)).permute(0, 3, 1, 2)
            y = layer(grid).permute(0, 2, 3, 1).flatten(1, 2)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = y + x if y.shape == x.shape else y
        return self.back(x)
