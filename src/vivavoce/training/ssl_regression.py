"""data2vec's objectives: the mean of a teacher's last layers at hidden frames, which the teacher hears and the pupil
does not (arXiv:2202.03555; data2vec 2.0, arXiv:2212.07525)."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_masked_labels import scaled_gradient
from vivavoce.training.ssl_masking import Masking, mask_rows, only, put_back
from vivavoce.training.ssl_task import Objective
from vivavoce.training.ssl_teacher import Teacher, squared_distance


class TeacherRegression(Objective):
    """data2vec: hidden frames are a learned vector, the pupil's last frames are mapped to the targets, and the loss is
    their squared distance. average: last blocks that are averaged; decays, freeze: of `Teacher`."""

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        average: int = 8,
        decays: tuple[float, float, int] = (0.999, 0.9999, 30_000),
        freeze: int | None = None,
        local_gradient: float = 1.0,
    ):
        super().__init__()
        self.masking = Masking(**{"prob": 0.65, **(mask or {})})
        self.teacher = Teacher(trunk, average, decays, freeze)
        self.local_gradient = local_gradient
        self.mask_vector = nn.Parameter(torch.rand(trunk.width))
        self.project = nn.Linear(trunk.width, trunk.width)
        object.__setattr__(self, "_trunk", trunk)

    def before_step(self, trunk: Trunk, step: int) -> None:
        self.teacher.follow(trunk, step)

    def targets(self, x: Tensor, counts: Tensor) -> Tensor:
        """Of frames before the mask [B, T, D]: [B, T, D], zero before the first step."""
        if self.teacher.trunk is None:
            return torch.zeros_like(x, dtype=torch.float32)
        return torch.stack(self.teacher.targets(x, counts)).mean(0)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        x = trunk.embed(trunk.local_norm(scaled_gradient(frames, self.local_gradient)))
        mask = batch["mask"] & valid(counts, x.shape[1])
        targets = self.targets(x, counts)[mask]
        y = trunk.context(torch.where(mask[..., None], self.mask_vector.to(x.dtype), x), counts)
        loss = squared_distance(self.project(y[mask]), targets)
        return {"loss": loss, **spreads(targets, y[mask])}

    def extra(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state()}

    def load_extra(self, state: Mapping[str, Any]) -> None:
        self.teacher.load(state["teacher"], self._trunk)  # type: ignore[arg-type]


def spreads(targets: Tensor, found: Tensor) -> dict[str, Tensor]:
    """Standard deviation over frames of targets and of what the pupil has: near 0 where training has collapsed."""
    return {name: x.detach().float().std(0, correction=0).mean() for name, x in
            (("target_spread", targets), ("spread", found))}  # fmt: skip


class ManyMasks(TeacherRegression):
    """data2vec 2.0: one target for `clones` masks of a row; the pupil's blocks hear the visible frames only, and a
    small convolutional decoder fills in the others.

    decoder: `width`, `layers`, `kernel`, `groups`; noise: deviation of what stands for a hidden frame before it.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        average: int = 8,
        decays: tuple[float, float, int] = (0.999, 0.99999, 75_000),
        freeze: int | None = None,
        local_gradient: float = 1.0,
        clones: int = 8,
        noise: float = 0.01,
        decoder: Mapping[str, Any] | None = None,
    ):
        super().__init__(trunk, {"kind": "blocks", "prob": 0.5, "length": 5, **(mask or {})}, average, decays, freeze,
                         local_gradient)  # fmt: skip
        self.clones, self.noise = clones, noise
        self.mask_vector.requires_grad_(False)  # hidden frames are left out, nothing stands for them
        self.project = nn.Identity()  # type: ignore[assignment]
        self.decoder: nn.Module = ConvolutionDecoder(trunk.width, **(decoder or {}))
        self.masking_of_clones, self.masking = self.masking, None  # drawn here, one for each clone

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        x = trunk.embed(trunk.local_norm(scaled_gradient(frames, self.local_gradient)))
        targets = self.targets(x, counts).repeat_interleave(self.clones, 0)
        x, counts, hidden, noise = self.cloned(x, counts, batch["seeds"])
        shown = valid(counts, x.shape[1]) & ~hidden
        heard, some, at = only(trunk.place(torch.where(hidden[..., None], torch.zeros_like(x), x), counts), shown)
        y = trunk.attend_some(heard, some, at[..., 0])
        found = self.decoder(put_back(y, at, shown, noise), counts)
        loss = squared_distance(found[hidden], targets[hidden])
        return {"loss": loss, **spreads(targets[hidden], y[:, 0])}

    def cloned(self, x: Tensor, counts: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every row `clones` times: frames [B x clones, T, D], how many count, which of them are hidden, and the noise
        [B x clones, T, D] that stands for these."""
        x, counts = x.repeat_interleave(self.clones, 0), counts.repeat_interleave(self.clones, 0)
        chances = [
            torch.Generator().manual_seed(seed + clone) for seed in seeds.tolist() for clone in range(self.clones)
        ]
        assert self.masking_of_clones is not None
        hidden = mask_rows(self.masking_of_clones, counts.tolist(), chances).to(x.device)
        hidden = F.pad(hidden, (0, x.shape[1] - hidden.shape[1])) & valid(counts, x.shape[1])
        noise = torch.stack([torch.randn(x.shape[1:], generator=chance) for chance in chances]).to(x) * self.noise
        return x, counts, hidden, noise


class ConvolutionDecoder(nn.Module):
    """Grouped convolutions, each with a layer norm, GELU and a skip where the width stays, and a linear map back."""

    def __init__(self, width: int, inner: int = 384, layers: int = 4, kernel: int = 7, groups: int = 16):
        super().__init__()
        sizes = [width, *[inner] * layers]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, kernel, padding=kernel // 2, groups=groups)
            for before, after in pairwise(sizes)
        )
        self.back = nn.Linear(sizes[-1], width)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Frames [B, T, width] -> the same shape."""
        inside = valid(counts, x.shape[1])[..., None]
        for layer in self.layers:
            y = layer((x * inside).transpose(1, 2)).transpose(1, 2)[:, : x.shape[1]]
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = y + x if y.shape == x.shape else y
        return self.back(x)
