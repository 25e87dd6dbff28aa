"""Training a codec to mark what is new in a recording, and to hear the marks (SSR-Speech, arXiv:2409.07556)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.task import step_seed

REGIONS, MOST = 4, 0.8  # new regions of a crop, and the share that they are of it at most


def regions(frames: int, chance: torch.Generator) -> Tensor:
    """Some regions of a crop, as one after another is drawn while there is room: bool [frames]."""
    marks, room = torch.zeros(frames, dtype=torch.bool), max(1, int(MOST * frames))
    for _ in range(int(torch.randint(1, REGIONS + 1, (), generator=chance))):
        size = min(int(torch.randint(1, max(1, int(MOST * frames)) + 1, (), generator=chance)), room)
        start = int(torch.randint(frames - size + 1, (), generator=chance))
        marks[start : start + size] = True
        room -= size
        if not room:
            break
    return marks


class WatermarkTask(CodecTask):
    """A `WatermarkCodec` on crops in which regions are said to be new: encoder and codebooks stay, the decoder learns
    all that `CodecTask` has for it, and both it and the listener by the marks that the listener hears.

    mark: weight of the cross-entropy of the marks, frame by frame, in what the decoder makes; clean: that of
    recordings, which have none, beside it. Other options: `CodecTask`'s, with the codes kept.
    """

    name = "watermark"

    def __init__(self, codec: Any, clips: Any, *, mark: float = 1.0, clean: float = 0.25, **options: Any):
        if not hasattr(codec, "listener"):
            raise RecipeError("this codec makes no marks: choose kind ssr-speech-codec")
        if mark <= 0 or clean < 0:
            raise RecipeError(f"mark {mark}, clean {clean}: weights, the first above 0")
        super().__init__(codec, clips, **options, keep_codes=True)
        self.mark, self.clean = mark, clean
        self._step: int | None = None

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        self._step = step
        try:
            yield from super().updates(batch, step)
        finally:
            self._step = None

    def marks(self, rows: int, frames: int, step: Any) -> Tensor:
        """Which frames of a step's crops are new [rows, frames]."""
        chance = [torch.Generator().manual_seed(step_seed(self.seed, step, row, "marks")) for row in range(rows)]
        return torch.stack([regions(frames, each) for each in chance])

    def made(self, wave: Tensor, marks: Tensor) -> tuple[Tensor, Any]:
        """What the decoder makes of waveforms [B, 1, S] with marks [B, T], of the same length, and of the quantizer."""
        self.codec.quantizer.eval()  # a codebook in training mode moves with what it is shown
        with torch.no_grad():
            self.latents = self.codec.encode_latents(wave)
            quantized = self.codec.quantize(self.latents)
        joined = self.codec.joined(quantized.latents, marks, self.latents)
        return self.codec.decode_latents(joined)[..., : wave.shape[-1]], quantized

    def _through(self, wave: Tensor) -> tuple[Tensor, Any]:
        frames = int(self.codec.frames(wave.shape[-1]))
        step = "held out" if self._step is None else self._step
        marks = self.marks(len(wave), frames, step).to(wave.device)
        made, quantized = self.made(wave, marks)
        if self._step is None:
            return made, quantized
        told = F.cross_entropy(self.codec.listen(made).flatten(0, 1), marks.long().flatten())
        none = F.cross_entropy(self.codec.listen(wave).flatten(0, 1), torch.zeros_like(marks).long().flatten())
        return made, replace(quantized, loss=self.mark * (told + self.clean * none))

    def evaluate(self, step: int) -> Mapping[str, float]:
        """As any codec's, with some regions marked; and of the frames that are marked, of those beside them, and of
        recordings, the shares that are heard as marked."""
        figures = dict(super().evaluate(step))
        heard: dict[str, list[Tensor]] = {"marked": [], "beside": [], "clean": []}
        for clip in self.held_out:
            wave = clip.to(next(self.codec.parameters()).device)[None]
            marks = self.marks(1, int(self.codec.frames(wave.shape[-1])), "held out").to(wave.device)
            found = self.codec.marked(self.made(wave, marks)[0]) > 0.5
            for name, part in (("marked", found[marks]), ("beside", found[~marks])):
                heard[name].append(part)
            heard["clean"].append(self.codec.marked(wave)[0] > 0.5)
        return figures | {name: float(torch.cat(parts).float().mean()) for name, parts in heard.items() if parts}
