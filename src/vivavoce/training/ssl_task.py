"""Pre-training an encoder on speech that nobody has labelled: rows of recordings, hidden frames, one objective.

What is hidden and what is to be found instead is the `Objective`'s; the crops, their labels and masks, and the order of
all that, are made here. A row's crop, mask and noise depend on the seed, the step and the row only.
"""

import copy
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.encoders.base import Trunk
from vivavoce.encoders.registry import build_encoder
from vivavoce.errors import DataError, RecipeError
from vivavoce.training.ssl_labels import Labels
from vivavoce.training.ssl_masking import Masking, mask_rows
from vivavoce.training.task import Task, share, step_seed

Learner = TypeVar("Learner", bound=nn.Module)


class Objective(nn.Module):
    """What an encoder learns by. masking: which frames are hidden (None: the objective hides what it needs itself).

    `labels` are the makers of labels that it asks for; `views`: in how many disguises every row is heard.
    """

    masking: Masking | None = None
    labels: Sequence[Labels] = ()

    def views(self, wave: Tensor, sample_rate: int, chance: torch.Generator) -> list[Tensor]:
        """What is heard of a crop [samples]: itself, or several disguises of it of the same length."""
        return [wave]

    def before_step(self, trunk: Trunk, step: int) -> None:
        """Called once before every step: teachers follow here. `trunk` is as the step before has left it."""

    def forward(self, trunk: Trunk, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """"loss", which is minimised, and figures. batch: wave [B, S], lengths [B], mask [B, T], labels (a list of
        [B, T], -1 where there is none), seeds [B] of what a row draws later."""
        raise NotImplementedError

    def extra(self) -> dict[str, Any]:
        """What must be kept beside the weights: a teacher's, say."""
        return {}

    def load_extra(self, state: Mapping[str, Any]) -> None:
        """Take back what `extra` gave."""


def trunk_of(codec: Any, where: str = "training") -> Trunk:
    """What can be pre-trained of the encoder of a codec's units; `RecipeError`, beginning with `where`, if nothing."""
    encoder = codec.units.encoder
    trunk = getattr(encoder, "trunk", encoder)
    if not isinstance(trunk, Trunk):
        raise RecipeError(
            f"{where}: an encoder of kind {type(encoder).__name__} cannot be pre-trained: it has no two halves"
        )
    return trunk


class PretrainTask(Task):
    """Trains the encoder of `codec`'s units on `waves` ([1, samples] each, at its rate) towards `objective`.

    seconds: of a row; every second of the waves is equally likely to be in one. join: a clip that is shorter is
    followed by others rather than by silence. fresh: the encoder begins anew (its weights may have made the labels). A
    sequence of waves may be lazy. Held-out waves are asked in `evaluate`, with masks of their own that never change.
    """

    def __init__(
        self,
        name: str,
        codec: Any,
        waves: Sequence[Tensor],
        objective: Objective,
        *,
        held_out: Sequence[Tensor] = (),
        seconds: float = 15.6,
        batch: int = 16,
        join: bool = False,
        fresh: bool = False,
        seed: int = 0,
    ):
        self.name, self.codec, self.objective = name, codec, objective
        self.waves, self.held_out = waves, held_out
        self.batch_size, self.join, self.seed = batch, join, seed
        trunk = self.trunk
        self.hop = round(trunk.sample_rate / trunk.frame_rate)
        self.samples_per_row = max(1, round(seconds * trunk.sample_rate / self.hop)) * self.hop
        for labels in objective.labels:
            labels.bind(trunk, waves)
        if len(waves) and fresh:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(step_seed(seed, name, "fresh"))
                codec.units.encoder.load_state_dict(build_encoder(codec.units.config or {}).state_dict())
        if len(waves) or not any(True for _ in objective.parameters()):  # which has nothing else to check for
            trunk.requires_grad_(True)
        self.sizes = list(getattr(waves, "sizes", None) or [wave.shape[1] for wave in waves])
        self.ends = list(accumulate(self.sizes))
        self.stepped = -1

    @property
    def trunk(self) -> Trunk:
        """The encoder that learns."""
        return trunk_of(self.codec)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"codec": self.codec, "objective": self.objective}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        if not self.ends or self.ends[-1] == 0:
            raise DataError(f"training.{self.name}: no recordings to learn from")
        rows = []
        for row in share(self.batch_size, rank, world):
            chance = torch.Generator().manual_seed(step_seed(self.seed, self.name, step, row))
            rows.append(self._row(chance))
        return self._collated(rows)

    def _row(self, chance: torch.Generator) -> tuple[Tensor, list[Tensor], torch.Generator]:
        """A crop [samples], its labels of every maker [frames], and the chance that is left."""
        waves: list[Tensor] = []
        labels: list[list[Tensor]] = [[] for _ in self.objective.labels]
        missing = self.samples_per_row
        while missing > 0:
            place = int(torch.randint(self.ends[-1], (), generator=chance))
            index = bisect_right(self.ends, place)
            wave = self.waves[index][0]
            start = max(0, place - (self.ends[index] - len(wave)) - self.samples_per_row // 2)
            start = min(start, max(0, len(wave) - missing)) // self.hop * self.hop
            piece = wave[start : start + missing]
            whole = -(-len(piece) // self.hop)
            for made, maker in zip(labels, self.objective.labels):
                mine = maker.of(index)[start // self.hop :][:whole]
                made.append(F.pad(mine, (0, whole - len(mine)), value=-1))
            waves.append(F.pad(piece, (0, whole * self.hop - len(piece))) if self.join else piece)
            missing -= whole * self.hop
            if not self.join:
                break
        return torch.cat(waves), [torch.cat(made) for made in labels], chance

    def _collated(self, rows: Sequence[tuple[Tensor, list[Tensor], torch.Generator]]) -> dict[str, Any]:
        """One batch; several views of a row are rows behind one another."""
        rate = self.trunk.sample_rate
        heard = [view for wave, _, chance in rows for view in self.objective.views(wave, rate, chance)]
        lengths = torch.tensor([len(wave) for wave in heard])
        wave = torch.zeros(len(heard), max(int(lengths.max()), 1))
        for row, values in zip(wave, heard):
            row[: len(values)] = values
        counts = self.trunk.frames(lengths)
        most = max(int(counts.max()), 1)
        batch: dict[str, Any] = {"wave": wave, "lengths": lengths}
        views = len(heard) // len(rows)
        chances = [chance for *_, chance in rows for _ in range(views)]
        if self.objective.masking is not None:
            mask = mask_rows(self.objective.masking, counts.tolist(), chances)
            batch["mask"] = F.pad(mask, (0, most - mask.shape[1]))
        if self.objective.labels:
            found = []
            for number in range(len(self.objective.labels)):
                labels = torch.full((len(rows), most), -1)
                for row, (_, made, _) in zip(labels, rows):
                    row[: len(made[number])] = made[number][:most]
                found.append(labels.repeat_interleave(views, 0))
            batch["labels"] = found
        batch["seeds"] = torch.stack([torch.randint(2**62, (), generator=chance) for *_, chance in rows])
        return batch

    def loss(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        if step != self.stepped:
            self.stepped = step
            self.objective.before_step(self.trunk, step)
        return self.objective(self.trunk, batch, step)

    def evaluate(self, step: int) -> Mapping[str, float]:
        """The objective's figures of the held-out waves, their first seconds each."""
        rows = []
        for number, wave in enumerate(self.held_out):
            chance = torch.Generator().manual_seed(step_seed(self.seed, self.name, "held out", number))
            piece = wave[0, : self.samples_per_row]
            rows.append((piece, [maker.heard(piece) for maker in self.objective.labels], chance))
        sums: dict[str, float] = {}
        batches = 0
        device = next(self.trunk.parameters()).device
        for first in range(0, len(rows), self.batch_size):
            from vivavoce.training.batches import to_device

            batch = to_device(self._collated(rows[first : first + self.batch_size]), device)
            for key, value in self.objective(self.trunk, batch, step).items():
                sums[key] = sums.get(key, 0.0) + float(value)
            batches += 1
        return {key: value / batches for key, value in sums.items() if key not in ("weight", "tokens")}

    def show(self, batch: Mapping[str, Any]) -> list[str]:
        rate, lengths = self.trunk.sample_rate, batch["lengths"]
        counts = self.trunk.frames(lengths)
        lines = [f"{len(lengths)} rows of {float(lengths.min()) / rate:.2f} to {float(lengths.max()) / rate:.2f} s; "
                 f"{int(counts.sum())} frames, {self.trunk.frame_rate:g} a second"]  # fmt: skip
        for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist())):
            text = f"row {row}: {length / rate:.2f} s, {count} frames"
            if "mask" in batch:
                text += f", {int(batch['mask'][row].sum())} hidden"
            for labels in batch.get("labels", ()):
                mine = labels[row][labels[row] >= 0]
                text += f", {len(mine.unique())} labels ({' '.join(map(str, mine[:12].tolist()))} …)"
            lines.append(text)
        return lines

    def state_dict(self) -> dict[str, Any]:
        labels = [maker.state() for maker in self.objective.labels]
        return {"stepped": self.stepped, "labels": labels, "objective": self.objective.extra()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stepped = int(state["stepped"])
        for maker, mine in zip(self.objective.labels, state["labels"], strict=True):
            maker.load(mine)
        self.objective.load_extra(state["objective"])


def copied(module: Learner) -> Learner:
    """A frozen copy in evaluation mode: a teacher."""
    return copy.deepcopy(module).requires_grad_(False).eval()
