"""DINO for utterances: which of many outputs a teacher has for a long piece of a clip, told from every other piece
(arXiv:2208.05413, after arXiv:2104.14294)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.spectrum_trunk import SpectrumTrunk
from vivavoce.errors import RecipeError
from vivavoce.quantizers.base import perplexity
from vivavoce.quantizers.collective import total, world_size
from vivavoce.training.ssl_bootstrap import piece
from vivavoce.training.ssl_masked_labels import cosines
from vivavoce.training.ssl_mixing import disguised
from vivavoce.training.ssl_task import Objective
from vivavoce.training.ssl_teacher import MovingAverage

LONG = 2  # pieces that the teacher hears


class UtteranceDino(Objective):
    """Cross entropy of the teacher's probabilities of a long piece under the pupil's of another one, the mean over all
    pairs of a long piece and any other piece of the same row.

    The teacher, the pupil's moving average, hears two random pieces of `long` seconds, the pupil these and `pieces` of
    `short` seconds. Logits are over a temperature each: `sharp` of the teacher, `soft` of the pupil; of the teacher's a
    running mean over batches, decaying by `center`, is taken first. outputs, hidden, bottleneck: of the head, whose
    last vectors have unit length. disguise: of each piece, an augmentation recipe of `vivavoce.data.augment` that keeps
    lengths (None: none).
    """

    middle: Tensor

    def __init__(
        self,
        trunk: Trunk,
        long: float = 4.0,
        short: float = 2.0,
        pieces: int = 4,
        outputs: int = 65_536,
        hidden: int = 2048,
        bottleneck: int = 256,
        soft: float = 0.1,
        sharp: float = 0.04,
        center: float = 0.9,
        decays: tuple[float, float, int] = (0.996, 1.0, 300_000),
        disguise: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        if not isinstance(trunk, SpectrumTrunk):
            raise RecipeError("objective: utterances need an encoder with one vector for each: ecapa or mel_patches")
        if not 0 < short <= long or pieces < 0 or not 0 <= center <= 1 or min(soft, sharp) <= 0:
            raise RecipeError(
                f"objective: short {short} up to long {long} seconds, pieces {pieces} from 0 up, center {center} in 0 "
                f"to 1, soft {soft} and sharp {sharp} above 0"
            )
        if disguise is not None:
            from vivavoce.data.augment import check

            check(disguise, "objective.disguise")
        self.long, self.short, self.pieces, self.disguise = long, short, pieces, disguise
        self.soft, self.sharp, self.center = soft, sharp, center
        self.head = DinoHead(trunk.summary_width, hidden, bottleneck, outputs)
        self.register_buffer("middle", torch.zeros(outputs))
        self.teacher: MovingAverage[nn.ModuleDict] = MovingAverage(decays, "cosine")
        object.__setattr__(self, "_trunk", trunk)

    def views(self, wave: Tensor, sample_rate: int, chance: torch.Generator) -> list[Tensor]:
        sizes = [self.long] * LONG + [self.short] * self.pieces
        found = [piece(wave, round(size * sample_rate), chance) for size in sizes]
        if self.disguise is None:
            return found
        return [disguised(each, sample_rate, self.disguise, chance) for each in found]

    def before_step(self, trunk: Trunk, step: int) -> None:
        self.teacher.follow(self._both(trunk), step)

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        assert isinstance(trunk, SpectrumTrunk)
        if self.teacher.copy is None:  # shown a batch before the first step
            self.teacher.follow(self._both(trunk), step)
        assert self.teacher.copy is not None
        views = LONG + self.pieces
        wave, lengths = (batch[name].unflatten(0, (-1, views)) for name in ("wave", "lengths"))
        groups = [(wave[:, :LONG], lengths[:, :LONG]), (wave[:, LONG:], lengths[:, LONG:])]
        told = torch.cat([self._logits(trunk, self.head, *each) for each in groups if each[0].shape[1]], dim=1)
        with torch.no_grad():
            teacher: Any = self.teacher.copy.to(wave.device).train(self.training)
            raw = self._logits(teacher["trunk"], teacher["head"], *groups[0])
            goals = ((raw - self.middle) / self.sharp).softmax(-1)
        logs = (told / self.soft).log_softmax(-1)
        pairs = [-(goals[:, mine] * logs[:, other]).sum(-1).mean()
                 for mine in range(LONG) for other in range(views) if other != mine]  # fmt: skip
        if self.training:
            mean = total(raw.flatten(0, 1).mean(0)) / world_size()
            self.middle.lerp_(mean, 1 - self.center)
        return {
            "loss": torch.stack(pairs).mean(),
            "perplexity": perplexity(goals).mean(),
            "outputs": perplexity(goals.mean((0, 1))),
        }

    def _logits(self, trunk: SpectrumTrunk, head: nn.Module, wave: Tensor, lengths: Tensor) -> Tensor:
        """Pieces [B, V, samples] -> [B, V, outputs]."""
        most = max(int(lengths.max()), 1)
        return head(trunk.utterances(wave[..., :most].flatten(0, 1), lengths.flatten())).unflatten(0, lengths.shape)

    def _both(self, trunk: Trunk) -> nn.ModuleDict:
        return nn.ModuleDict({"trunk": trunk, "head": self.head})

    def extra(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state()}

    def load_extra(self, state: Mapping[str, Any]) -> None:
        self.teacher.load(state["teacher"], self._both(self._trunk))  # type: ignore[arg-type]


class DinoHead(nn.Module):
    """Vectors [N, width] -> logits [N, outputs]: three linear maps with GELU, to unit length, and products with vectors
    of unit length."""

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int):
        super().__init__()
        self.maps = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.vectors = nn.Parameter(torch.randn(outputs, bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        return cosines(self.maps(x), self.vectors)
