"""Training what makes mel frames of a codec's tokens: conditional flow matching (CosyVoice 2, arXiv:2412.10117)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask, codebooks_use
from vivavoce.training.task import step_seed


class FlowTask(CodecTask):
    """Crops become tokens, which stay as they are, and mel frames; a `SemanticCodec`'s flow learns to lead from the one
    to the other, and its speaker encoder what the tokens do not tell. The vocoder has no part in it.

    prompted: share of the rows that are told true mel frames at their beginning, up to `prompt` of the row. whole:
    share of the steps in which frames see all others, not only those of their chunk and before. Other options:
    `CodecTask`'s.
    """

    name = "flow"

    def __init__(
        self, codec: Any, clips: Any, *, prompted: float = 0.5, prompt: float = 0.3, whole: float = 0.5, **options: Any
    ):
        if not hasattr(codec, "to_mel"):
            raise RecipeError("this codec has no flow matching between its tokens and its vocoder")
        if not all(0 <= share <= 1 for share in (prompted, prompt, whole)):
            raise RecipeError(f"prompted {prompted}, prompt {prompt}, whole {whole}: shares from 0 to 1")
        super().__init__(codec, clips, **options)
        self.prompted, self.prompt, self.whole = prompted, prompt, whole

    def _loss(self, wave: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
        """The flow's loss of waveforms [B, 1, S], and their tokens."""
        codes, mel = self.codec.encode(wave), self.codec.mel(wave)
        rows, size = len(wave), mel.shape[1]
        speaker = self.codec.speaker(mel, torch.full((rows,), size, device=mel.device))
        told = (torch.rand(rows, device=mel.device) * self.prompt * size).long()
        told = told * (torch.rand(rows, device=mel.device) < self.prompted)
        counts = torch.full((rows,), codes.shape[-1], device=mel.device)
        return self.codec.to_mel.loss(self.codec.numbers(codes), mel, counts, speaker, told, whole), codes

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        whole = step_seed(self.seed, step, "whole") % 10**6 < self.whole * 10**6
        loss, _ = self._loss(batch, whole)
        yield "codec", {"loss": loss, "flow": loss.detach()}

    def resynthesize(self, wave: Tensor, codebooks: int | None = None) -> tuple[Tensor, Any]:
        """Waveform through its tokens, of the same length."""
        heard = self.codec(wave)
        return heard.audio, heard

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips, with the same noise every time: the loss, by chunks, and the tokens' health."""
        if not len(self.held_out):
            return {}
        device, total, codes = next(self.codec.parameters()).device, 0.0, []
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(self.seed, "held out"))
            for clip in self.held_out:
                loss, found = self._loss(clip.to(device)[None], whole=False)
                total += float(loss) / len(self.held_out)
                codes.append(found[0])
        return {"flow": total, **codebooks_use(torch.cat(codes, dim=-1))}
