"""M2D's objective: of the hidden patches, which the pupil does not hear, what a teacher makes who hears these alone
(masked modeling duo, arXiv:2210.14648; nttcslab/m2d)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.mel_patches import MelPatches, grid_positions
from vivavoce.encoders.speech_transformer import Block, SpeechTransformerConfig, through_blocks
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import valid
from vivavoce.training.ssl_bootstrap import apart
from vivavoce.training.ssl_masking import Masking, only, put_back
from vivavoce.training.ssl_regression import spreads
from vivavoce.training.ssl_task import Objective
from vivavoce.training.ssl_teacher import MovingAverage

# What the teacher takes from the pupil: patches and their places come to it embedded, the first vector is the pupil's.
SHARED = ("projection", "places", "first")


class MaskedDuo(Objective):
    """2 - 2 cos of what a predictor tells of a hidden patch and the teacher's output there, which is brought to zero
    mean and unit variance over its dimensions.

    The predictor, `layers` blocks of `width`, hears the pupil's patches and first vector at their places, and one
    learned vector at all others. decays: of the teacher, whose blocks follow the pupil's.
    """

    def __init__(
        self,
        trunk: Trunk,
        mask: Mapping[str, Any] | None = None,
        decays: tuple[float, float, int] = (0.99995, 0.99999, 300_000),
        layers: int = 8,
        width: int = 512,
        heads: int = 16,
        hidden: int = 2048,
    ):
        super().__init__()
        if not isinstance(trunk, MelPatches):
            raise RecipeError("objective: patches are hidden from an encoder of kind mel_patches")
        self.masking = Masking(**{"kind": "blocks", "prob": 0.7, "length": 1, "adjust": 0.0, **(mask or {})})
        self.teacher: MovingAverage[Trunk] = MovingAverage(decays, shared=SHARED)
        self.narrow, self.widen = nn.Linear(trunk.width, width), nn.Linear(width, trunk.width)
        self.mask_vector = nn.Parameter(0.02 * torch.randn(width))
        config = SpeechTransformerConfig(
            width=width, heads=heads, hidden=hidden, stable=True, epsilon=1e-6, position_groups=1
        )
        self.blocks, self.norm = nn.ModuleList(Block(config) for _ in range(layers)), nn.LayerNorm(width, 1e-6)
        self.places: Tensor
        self.register_buffer("places", grid_positions(trunk.columns, trunk.bands, width), persistent=False)
        object.__setattr__(self, "_trunk", trunk)

    @torch.no_grad()
    def before_step(self, trunk: Trunk, step: int) -> None:
        self.teacher.follow(trunk, step)
        assert isinstance(trunk, MelPatches) and isinstance(self.teacher.copy, MelPatches)
        self.teacher.copy.first.copy_(trunk.first)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert isinstance(trunk, MelPatches)
        if self.teacher.copy is None:  # shown a batch before the first step
            self.before_step(trunk, step)
        frames, counts = trunk.local(batch["wave"], batch["lengths"])
        inside = valid(counts, frames.shape[1])
        hidden = batch["mask"] & inside
        shown = inside & ~hidden
        x = trunk.place(trunk.embed(frames), counts)
        heard, some, at = only(x, shown)
        found = self.told(trunk.with_first(heard, some), at, shown, counts)[hidden]
        goals = standard(self.targets(x.detach(), hidden))
        return {"loss": apart(found, goals), **spreads(goals, found)}

    @torch.no_grad()
    def targets(self, x: Tensor, hidden: Tensor) -> Tensor:
        """What the teacher gives of the hidden ones of placed patches [B, T, D], which alone it hears: [N, D]."""
        teacher: Any = self.teacher.copy
        heard, some, _ = only(x, hidden)
        y = teacher.to(x.device).with_first(heard, some)[:, 1:]
        return y[valid(some, y.shape[1])]

    def told(self, y: Tensor, at: Tensor, shown: Tensor, counts: Tensor) -> Tensor:
        """The first vector and the visible patches [B, 1 + most, D] -> what is told of all patches [B, T, D]."""
        z = self.narrow(y)
        grid = put_back(z[:, 1:], at, shown, self.mask_vector.to(z.dtype))
        grid = grid + self.places[torch.arange(grid.shape[1], device=z.device) % len(self.places)].to(z)
        z = through_blocks(self.blocks, torch.cat([z[:, :1], grid], dim=1), counts + 1, None)
        return self.widen(self.norm(z[:, 1:]))

    def extra(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state()}

    def load_extra(self, state: Mapping[str, Any]) -> None:
        self.teacher.load(state["teacher"], self._trunk)  # type: ignore[arg-type]


def standard(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Vectors [N, D], each of zero mean and unit variance over its dimensions."""
    x = x.float()
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + epsilon).sqrt()
