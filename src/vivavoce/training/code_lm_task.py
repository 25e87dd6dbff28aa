"""Training the models of a codec's codes (`codecs.code_lm`), by which they take fewer bits; the codec stays."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask, in_use


class CodeLMTask(CodecTask):
    """Crops become codes of all levels, and the nats of those that are sent, and of those that are predicted, are
    minimised: EnCodec, arXiv:2210.13438, section 3.5; LMCodec, arXiv:2303.12984, section 2. Options: `CodecTask`'s."""

    name = "code_lm"

    def __init__(self, codec: Any, clips: Any, **options: Any):
        if getattr(codec, "entropy", None) is None:
            raise RecipeError("code_lm: this codec has no model of its codes: give it `entropy` where it is named")
        options.pop("calibrate", None)
        super().__init__(codec, clips, **options)

    @torch.no_grad()
    def codes(self, wave: Tensor) -> Tensor:
        """Of all levels, of waveforms [B, C, S]: [B, K, T]."""
        with in_use(self.codec, self.codec.quantizer.codebooks):
            return self.codec.encode(wave)

    def nats(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean nats of each level that is sent, and of each that is predicted (none: no values)."""
        models = self.codec.entropy
        sent = models.sent.nats(codes[:, : len(models.sent.sizes)])
        return sent, sent.new_zeros(0) if models.fine is None else models.fine.nats(codes)

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        sent, fine = self.nats(self.codes(batch))
        logs = {"sent": sent.detach().mean(), **({"fine": fine.detach().mean()} if len(fine) else {})}
        yield "codec", {"loss": sent.sum() + fine.sum(), **logs}

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips: bits a second of what is sent, and nats a code of what is predicted."""
        if not len(self.held_out):
            return {}
        device = next(self.codec.parameters()).device
        figures: dict[str, float] = {}
        for clip in self.held_out:
            sent, fine = self.nats(self.codes(clip.to(device)[None]))
            told = {"bits_per_second": float(sent.sum()) / math.log(2) * self.codec.frame_rate}
            told |= {"fine": float(fine.mean())} if len(fine) else {}
            for name, value in told.items():
                figures[name] = figures.get(name, 0.0) + value / len(self.held_out)
        return figures
