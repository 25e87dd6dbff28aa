"""Training a FACodec: heads say what each factor must know, and, through reversed gradients, what it must not.

Source: NaturalSpeech 3 (arXiv:2403.03100, section 3.2 and figure 3): prosody predicts pitch, content phones, timbre the
speaker; the residual is cleared of pitch and phones, and what the codes say together of the speaker.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.pitch import fundamental
from vivavoce.errors import RecipeError
from vivavoce.nn.gradient_reversal import reverse_gradient
from vivavoce.training.codec_task import CodecTask
from vivavoce.training.task import share

HEADS = {"pitch": 1.0, "voiced": 1.0, "phones": 1.0, "speaker": 1.0, "reversed": 1.0}
NONE = -1  # a label that is not known


class FactorHeads(nn.Module):
    """Linear heads over the factors' frames [B, T, D] and over the timbre [B, D]; `phones`, `speakers`: how many.

    Losses, each a mean over what is known: pitch (L1 of log2 F0 over `octave` Hz, of voiced frames), voiced
    (cross-entropy), phones, speaker; and `reversed`, the sum of those of heads behind reversed gradients: pitch, voice
    and phones of the residual, the speaker of the mean of all quantized frames.
    """

    def __init__(self, width: int, phones: int = 0, speakers: int = 0, octave: float = 128.0):
        super().__init__()
        self.octave = octave
        self.heads = nn.ModuleDict({"prosody": nn.Linear(width, 2), "detail_prosody": nn.Linear(width, 2)})
        if phones:
            self.heads.update({"content": nn.Linear(width, phones), "detail_content": nn.Linear(width, phones)})
        if speakers:
            self.heads.update({"timbre": nn.Linear(width, speakers), "rest_timbre": nn.Linear(width, speakers)})

    def forward(
        self,
        factors: Mapping[str, Tensor],
        timbre: Tensor,
        hertz: Tensor,
        phones: Tensor | None = None,
        speakers: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """factors: prosody, content, residual, quantized. hertz [B, T], 0 where nothing is voiced; phones [B, T] and
        speakers [B], -1 where not known."""
        detail = reverse_gradient(factors["residual"])
        pitch, voiced = self._prosody("prosody", factors["prosody"], hertz)
        losses, against = {"pitch": pitch, "voiced": voiced}, list(self._prosody("detail_prosody", detail, hertz))
        if phones is not None and "content" in self.heads:
            losses["phones"] = self._labels("content", factors["content"], phones)
            against.append(self._labels("detail_content", detail, phones))
        if speakers is not None and "timbre" in self.heads:
            whole = reverse_gradient(torch.stack(list(factors.values())).sum(0).mean(1))
            losses["speaker"] = self._labels("timbre", timbre, speakers)
            against.append(self._labels("rest_timbre", whole, speakers))
        return {**losses, "reversed": torch.stack(against).sum()}

    def _prosody(self, head: str, x: Tensor, hertz: Tensor) -> tuple[Tensor, Tensor]:
        height, sound = self.heads[head](x).unbind(-1)
        voiced = hertz > 0
        wanted = torch.log2(hertz.clamp(min=1) / self.octave)
        apart = ((height - wanted).abs() * voiced).sum() / voiced.sum().clamp(min=1)
        return apart, F.binary_cross_entropy_with_logits(sound, voiced.float())

    def _labels(self, head: str, x: Tensor, labels: Tensor) -> Tensor:
        logits = self.heads[head](x).flatten(0, -2)
        if not bool((labels != NONE).any()):
            return logits.sum() * 0
        return F.cross_entropy(logits, labels.flatten(), ignore_index=NONE)


class FactorTask(CodecTask):
    """A `FACodec` on crops of clips: all that `CodecTask` does, the timbre taken from the crop itself, and the heads.

    speakers: of each clip, its speaker's name (None: no speaker is told). phones: how many there are, and
    phone_labels: of each clip its phones [frames] at the codec's rate, -1 where not known (None: no phone is told).
    heads: weights over pitch, voiced, phones, speaker, reversed. Pitch is found in the crops by YIN.
    """

    name = "factors"

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        speakers: Sequence[str] | None = None,
        phones: int = 0,
        phone_labels: Sequence[Tensor] | None = None,
        heads: Mapping[str, float] | None = None,
        **options: Any,
    ):
        if not hasattr(codec, "timbre_of"):
            raise RecipeError("this codec has no timbre and no factors: choose kind facodec")
        unknown = [key for key in heads or {} if key not in HEADS]
        if unknown:
            raise RecipeError(f"heads name '{unknown[0]}'; there are {', '.join(HEADS)}")
        if phone_labels is not None and options.get("speed", (1.0, 1.0)) != (1.0, 1.0):
            raise RecipeError("speed: crops that are played faster or slower no longer fit their phones")
        super().__init__(codec, clips, **options)
        self.head_weights = {**HEADS, **(heads or {})}
        names = sorted(set(speakers or ()))
        self.speakers = None if not names else [names.index(name) for name in speakers or ()]
        self.phone_labels = phone_labels
        self.heads = FactorHeads(codec.quantizer.width, phones, len(names))
        self._labels: dict[str, Tensor] = {}

    def modules(self) -> Mapping[str, nn.Module]:
        return {**super().modules(), "heads": self.heads}

    def optimizers(self) -> Mapping[str, Sequence[str]]:
        return {**{name: (name,) for name in super().modules()}, "codec": ("codec", "heads")}

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:  # type: ignore[override]
        """`wave` [B, 1, S], and of each crop its `speakers` [B] and `phones` [B, T], where they are told."""
        found = {"wave": super().batch(step, rank, world)}
        places = [self.place(step, row) for row in share(self.batch_size, rank, world)]
        if self.speakers is not None:
            found["speakers"] = torch.tensor([self.speakers[clip] for clip, _ in places])
        if self.phone_labels is not None:
            frames = int(self.codec.frames(self.samples_per_crop))
            rows = [self.phone_labels[clip][start // self.codec.hop :][:frames] for clip, start in places]
            found["phones"] = torch.stack([F.pad(row, (0, frames - len(row)), value=NONE) for row in rows])
        return found

    def show(self, batch: Any) -> list[str]:
        return super().show(batch["wave"])

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        self._labels = {name: labels for name, labels in batch.items() if name != "wave"}
        yield from super().updates(batch["wave"], step)

    def resynthesize(self, wave: Tensor, codebooks: int | None = None) -> tuple[Tensor, Any]:
        """As any codec's; what the heads have to say is in the quantizer's loss while training."""
        latents = self.codec.encode_latents(wave)
        factors = self.codec.quantizer.factors(latents, None, self.codec.codebooks)
        quantized = self.codec.quantizer.joined(factors)
        timbre = self.codec.timbre_of(latents)
        state = self.codec.decoder_state(len(wave), timbre)
        made = self.codec.decode_latents(quantized.latents, None, state)[..., : wave.shape[-1]]
        if not self.codec.training:
            return made, quantized
        return made, replace(quantized, loss=quantized.loss + self._told(factors, timbre, wave))

    def _told(self, factors: Mapping[str, Any], timbre: Tensor, wave: Tensor) -> Tensor:
        """The heads' losses of a batch, weighted."""
        hertz = pitch_of(wave, self.codec.sample_rate, self.codec.hop, next(iter(factors.values())).latents.shape[1])
        frames = {name: part.latents for name, part in factors.items()}
        labels = {name: labels.to(wave.device) for name, labels in self._labels.items()}
        losses = self.heads(frames, timbre, hertz, labels.get("phones"), labels.get("speakers"))
        return torch.stack([self.head_weights[name] * loss for name, loss in losses.items()]).sum()


def pitch_of(wave: Tensor, sample_rate: int, hop: int, frames: int) -> Tensor:
    """F0 in Hz of waveforms [B, 1, S] -> [B, frames], 0 where nothing is voiced."""
    rows = [fundamental(row.detach().cpu().numpy(), sample_rate, hop, frames) for row in wave[:, 0]]
    return torch.from_numpy(np.stack(rows)).to(wave.device)
