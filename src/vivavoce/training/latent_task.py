"""Training latent diffusion: first the latents of mel frames, then the way from tokens to them (SemantiCodec).

AudioLDM (arXiv:2301.12503, section 3.4) for the latents; SemantiCodec (arXiv:2405.00233, section 3.4) for codes that
learn by the diffusion's loss alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.codecs.mel_latents import divergence, drawn
from vivavoce.errors import RecipeError
from vivavoce.training.codec_task import CodecTask, codebooks_use, health
from vivavoce.training.task import step_seed


class LatentTask(CodecTask):
    """Crops become mel frames, latents, and mel frames again, by their mean distance; the latents are held near normal
    ones by `divergence` times how far they are from these, in nats a number. Codes and vocoder have no part in it.

    Other options: `CodecTask`'s.
    """

    name = "latents"

    def __init__(self, codec: Any, clips: Any, *, divergence: float = 1e-3, **options: Any):
        if not hasattr(codec, "to_latents"):
            raise RecipeError("this codec has no latents of mel frames")
        super().__init__(codec, clips, **options)
        self.weight = divergence

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        mel = self.codec.features(batch)
        mean, spread = self.codec.to_latents(mel)
        apart = F.l1_loss(self.codec.to_mel.back(drawn(mean, spread)), mel)
        away = divergence(mean, spread)
        yield "codec", {"loss": apart + self.weight * away, "mel": apart.detach(), "divergence": away.detach()}

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips: distance of the mel frames that the latents' means give, and the divergence."""
        figures: dict[str, float] = {}
        for clip in self.held_out:
            mel = self.codec.features(clip.to(next(self.codec.parameters()).device)[None])
            mean, spread = self.codec.to_latents(mel)
            values = {"mel": F.l1_loss(self.codec.to_mel.back(mean), mel), "divergence": divergence(mean, spread)}
            for name, value in values.items():
                figures[name] = figures.get(name, 0.0) + float(value) / len(self.held_out)
        return figures


class DiffusionTask(CodecTask):
    """Crops become tokens, and the latents of their mel frames; flow matching learns to lead from the one to the other,
    and the acoustic tokens to tell it what it needs. Encoder of the latents and vocoder have no part in it.

    measure: so many crops give the deviation to which latents are scaled, before the first step (0: as it is). whole:
    share of the steps in which frames see all others, not only those of their chunk and before. weights: `quantizer`'s.
    Other options: `CodecTask`'s.
    """

    name = "diffusion"

    def __init__(self, codec: Any, clips: Any, *, measure: int = 16, whole: float = 0.5, **options: Any):
        if not hasattr(codec, "to_latents"):
            raise RecipeError("this codec has no diffusion of latents")
        if not 0 <= whole <= 1:
            raise RecipeError(f"whole {whole}: a share from 0 to 1")
        calibrate = options.pop("calibrate", None)
        super().__init__(codec, clips, **options)
        self.whole = whole
        if measure and calibrate is not False:
            self._measure(measure)

    @torch.no_grad()
    def _measure(self, crops: int) -> None:
        deviation = self.codec.to_mel.scale.deviation
        deviation.fill_(1)
        waves = torch.cat([self.batch(number, 0, 1) for number in range(-(-crops // self.batch_size))])[:crops]
        deviation.copy_(torch.cat([self.codec.latents(wave[None]).flatten() for wave in waves]).std())

    def _loss(self, wave: Tensor, whole: bool) -> tuple[Tensor, Any]:
        """The flow's loss of waveforms [B, 1, S], and what the quantizer said."""
        with torch.no_grad():
            target = self.codec.latents(wave)
        quantized = self.codec.quantize(self.codec.encode_latents(wave))
        return self.codec.diffusion.loss(quantized.latents, target, whole), quantized

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        whole = step_seed(self.seed, step, "whole") % 10**6 < self.whole * 10**6
        flow, quantized = self._loss(batch, whole)
        logs = {"flow": flow.detach(), "quantizer": quantized.loss.detach(), **health(quantized)}
        yield "codec", {"loss": flow + self.weights["quantizer"] * quantized.loss, **logs}

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips, with the same noise every time: the loss, by chunks, and the codebooks' health."""
        if not len(self.held_out):
            return {}
        total, codes = 0.0, []
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(self.seed, "held out"))
            for clip in self.held_out:
                flow, quantized = self._loss(clip.to(next(self.codec.parameters()).device)[None], whole=False)
                total += float(flow) / len(self.held_out)
                codes.append(quantized.codes[0])
        return {"flow": total, **codebooks_use(torch.cat(codes, dim=-1))}
