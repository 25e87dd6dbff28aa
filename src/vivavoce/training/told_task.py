"""Training a codec on crops of clips of which something is known: what is said in them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.task import share
from vivavoce.training.text_supervision import TextSupervision, Told


class ToldTask(CodecTask):
    """`CodecTask` whose `supervision` may learn from texts (see `text_supervision`).

    texts: of each clip, "" where not known. Crops keep the speed of their clips. Other options: `CodecTask`'s.
    """

    supervised = TextSupervision

    def __init__(self, codec: Any, clips: Sequence[Tensor], *, texts: Sequence[str] = (), **options: Any):
        if tuple(options.get("speed", (1.0, 1.0))) != (1.0, 1.0):
            raise RecipeError("speed: crops that are played faster or slower no longer fit their texts")
        super().__init__(codec, clips, **options)
        self.texts = [*texts] or [""] * len(clips)

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:  # type: ignore[override]
        """`wave` [B, 1, S], and of each crop the number of its clip and where it begins there, in samples: `clips` and
        `starts` [B]."""
        places = [self.place(step, row) for row in share(self.batch_size, rank, world)]
        clips, starts = (torch.tensor(numbers) for numbers in zip(*places))
        return {"wave": super().batch(step, rank, world), "clips": clips, "starts": starts}  # type: ignore[dict-item]

    def show(self, batch: Any) -> list[str]:
        first, *rows = super().show(batch["wave"])
        said = [self.texts[clip] for clip in batch["clips"].tolist()]
        return [first, *(f"{row} of '{text}'" if text else row for row, text in zip(rows, said))]

    def told(self, batch: Any) -> Told:
        """What is known of the crops."""
        numbers = batch["clips"].tolist()
        sizes = torch.tensor([self.clips[clip].shape[-1] for clip in numbers], device=batch["starts"].device)
        ends = batch["starts"] + self.samples_per_crop
        return Told([self.texts[clip] for clip in numbers], batch["starts"] / sizes, ends / sizes)

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if isinstance(self.supervision, TextSupervision):
            self.supervision.tell(self.told(batch))
        yield from super().updates(batch["wave"], step)
