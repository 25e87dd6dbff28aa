"""Training a post-filter on a codec that stays as it is (ScoreDec, arXiv:2401.12160; FlowDec, arXiv:2503.01485)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask, in_use
from vivavoce.training.task import step_seed


class PostFilterTask(CodecTask):
    """Crops, and what the codec makes of them: the post-filter learns the way from the one to the other.

    counts: so many codebooks are in use, another one of these numbers each step (none: those that the codec uses), so
    that one post-filter serves several bit rates. measure: so many crops give the scale of spectra, and a flow's noise
    in every bin, before the first step (0: as they are). Other options: `CodecTask`'s.
    """

    name = "post_filter"

    def __init__(self, codec: Any, clips: Any, *, counts: Sequence[int] = (), measure: int = 64, **options: Any):
        if not hasattr(codec, "filter"):
            raise RecipeError("this codec has no post-filter: choose kind post_filtered")
        if any(not 1 <= count <= codec.quantizer.codebooks for count in counts):
            raise RecipeError(f"counts {list(counts)}: numbers of codebooks, 1 to {codec.quantizer.codebooks}")
        calibrate = options.pop("calibrate", None)
        super().__init__(codec, clips, **options)
        self.counts = tuple(counts)
        if measure and calibrate is not False:
            waves = torch.cat([self.batch(number, 0, 1) for number in range(-(-measure // self.batch_size))])[:measure]
            coded = torch.cat([self._coded(wave[None], number) for number, wave in enumerate(waves)])
            codec.filter.measure(waves[:, 0], coded[:, 0])

    def _coded(self, wave: Tensor, step: int) -> Tensor:
        """What the codec makes of waveforms [B, 1, S] by the codebooks that this step has."""
        count = self.counts[step_seed(self.seed, step, "counts") % len(self.counts)] if self.counts else None
        with in_use(self.codec, count):
            return self.codec.coded(wave)

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        loss = self.codec.filter.loss(batch[:, 0], self._coded(batch, step)[:, 0])
        yield "codec", {"loss": loss, "post_filter": loss.detach()}

    def resynthesize(self, wave: Tensor, codebooks: int | None = None) -> tuple[Tensor, Any]:
        """Waveform through its codes and the post-filter, of the same length."""
        with in_use(self.codec, codebooks):
            heard = self.codec(wave)
        return heard.audio, heard

    @torch.no_grad()
    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips, with the same noise every time: the loss, and the mel distance of what was coded
        from what went in, without the post-filter and with it."""
        if not len(self.held_out):
            return {}
        device, figures = next(self.codec.parameters()).device, {"post_filter": 0.0, "mel coded": 0.0, "mel": 0.0}
        self.mel.to(device)
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(self.seed, "held out"))
            for clip in self.held_out:
                wave = clip.to(device)[None]
                coded = self.codec.coded(wave)
                better = self.codec.filter(coded.transpose(1, 2)).transpose(1, 2)
                loss = self.codec.filter.loss(wave[:, 0], coded[:, 0])
                for name, value in zip(figures, (loss, self.mel(coded, wave), self.mel(better, wave))):
                    figures[name] += float(value) / len(self.held_out)
        return figures
