"""Training what lies between an encoder's features and their codes: the features must come back, no sound is made.

FocalCodec's second stage (arXiv:2502.04465, section 3.3), RepCodec (arXiv:2309.00169, equation 2), MaskGCT's semantic
codec (arXiv:2409.00750, section 3.2.1); with `dual`, PQ-VAE's second decoding path (arXiv:2406.02940); with
discriminators, Single-Codec's mel frames (arXiv:2406.07422, section 2.1).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivavoce.errors import RecipeError
from vivavoce.training.adversarial import Judgement, discriminator_loss, feature_matching, generator_loss
from vivavoce.training.balancer import passed
from vivavoce.training.codec_task import CodecTask, codebooks_use, health

DISTANCES = {"l2": F.mse_loss, "l1": F.l1_loss}


class FeatureTask(CodecTask):
    """Crops become features, latents, codes, and features again; a `FeatureCodec`'s vocoder has no part in it.

    distance: of the features, `l2` or `l1`. weight: of that distance, beside the quantizer's own loss. dual: weight of
    the distance of what the decompressor makes of latents that were not quantized: it keeps the decompressor, and with
    it the latents, of use while most codes are still dead. standardize: before the first step, the features' mean and
    deviation over so many crops become those that the codec subtracts and divides by. With `supervision: {teacher: …}`
    a causal codec's features, or those that come back, become another codec's. Discriminators (of kind `frames`) judge
    the features that come back against those that went in; their losses are multiplied by the weights `adversarial` and
    `features`. Other options: `CodecTask`'s.
    """

    name = "features"

    def __init__(
        self,
        codec: Any,
        clips: Any,
        *,
        distance: str = "l2",
        weight: float = 1.0,
        dual: float = 0.0,
        standardize: int = 0,
        **options: Any,
    ):
        if not hasattr(codec, "decompress"):
            raise RecipeError("this codec has no features between its encoder and its codes: train it on waveforms")
        if distance not in DISTANCES:
            raise RecipeError(f"distance '{distance}': choose one of {', '.join(DISTANCES)}")
        calibrate = options.pop("calibrate", None)
        super().__init__(codec, clips, **options)
        if self.supervision is not None and self.supervision.teacher and self.supervision.teacher.hears_sound:
            raise RecipeError("supervision.teacher: no sound is made of features here: leave the term wave out")
        self.distance, self.weight, self.dual = DISTANCES[distance], weight, dual
        if standardize and calibrate is not False:
            self._standardize(standardize)

    @torch.no_grad()
    def _standardize(self, crops: int) -> None:
        ears = self.codec.encoder.parts[0].parts[0]
        if not hasattr(ears, "mean"):
            raise RecipeError("standardize: the features of an encoder that streams have no statistics of their own")
        ears.mean.zero_()
        ears.scale.fill_(1)
        waves = torch.cat([self.batch(number, 0, 1) for number in range(-(-crops // self.batch_size))])
        frames = torch.cat([self.codec.features(wave[None])[0] for wave in waves[:crops]])
        ears.mean.copy_(frames.mean(0))
        ears.scale.copy_(frames.std(0).clamp(min=1e-5))

    def _again(self, wave: Tensor) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Features of a waveform, the latents, and the features that come back, with what the quantizer said."""
        with torch.no_grad():
            features = self.codec.features(wave)
        heard = getattr(self.codec, "compress", None)  # or else what comes back is not what was heard (SoCodec)
        latents = self.codec.encode_latents(wave) if heard is None else heard(features)
        if self.supervision is not None:
            self.supervision.settle(self.codec)
        quantized = self.codec.quantize(latents)
        return features, latents, self.codec.decompress(quantized.latents)[:, : features.shape[1]], quantized

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        features, latents, back, quantized = self._again(batch)
        losses = {"distance": self.distance(back, features), "quantizer": quantized.loss}
        total = self.weight * losses["distance"] + self.weights["quantizer"] * quantized.loss
        if self.dual:
            plain = self.codec.decompress(latents)[:, : features.shape[1]]
            losses["dual"] = self.distance(plain, features)
            total = total + self.dual * losses["dual"]
        if self.supervision is not None:
            taught = self.supervision(self.codec, batch, latents, quantized)
            total, losses = total + self.supervision.total(taught), losses | taught
        verdicts = None
        if self.judges is not None:
            turn = self.judges_learn(step)
            heard = back.detach().requires_grad_(back.requires_grad)
            with torch.set_grad_enabled(turn):
                real = self._judged_frames(features)
            fake = self._judged_frames(heard)
            losses["adversarial"] = generator_loss(fake, self.adversarial, summed=True)
            losses["features"] = feature_matching(real, fake, summed=True)
            told = [self.weights[name] * losses[name] for name in ("adversarial", "features")]
            total = total + passed(torch.stack(told).sum(), heard, onto=back)
            verdicts = (real, fake) if turn else None
        yield "codec", {"loss": total, **{name: loss.detach() for name, loss in losses.items()}, **health(quantized)}
        if verdicts is not None:
            yield "discriminators", {"loss": discriminator_loss(*verdicts, self.adversarial, summed=True)}

    def _judged_frames(self, frames: Tensor) -> Judgement:
        """The discriminators' opinion of features [B, T, D], always in float32."""
        assert self.judges is not None
        with torch.autocast(frames.device.type, enabled=False):
            return self.judges(frames.float())

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips: share of the features' variance that is not explained, and codebooks' health."""
        if not len(self.held_out):
            return {}
        device = next(self.codec.parameters()).device
        left, codes = 0.0, []
        told: dict[str, float] = {}
        for clip in self.held_out:
            wave = clip.to(device)[None]
            features, _, back, quantized = self._again(wave)
            if self.supervision is not None:
                for name, value in self.supervision.figures(self.codec, wave, quantized.codes).items():
                    told[name] = told.get(name, 0.0) + value / len(self.held_out)
            apart = (back - features).square().sum() / (features - features.mean(1, keepdim=True)).square().sum()
            left += float(apart) / len(self.held_out)
            codes.append(quantized.codes[0])
        return {"unexplained": left, **told, **codebooks_use(torch.cat(codes, dim=-1))}
