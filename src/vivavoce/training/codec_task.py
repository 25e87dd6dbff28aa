"""Training any codec: reconstruction first, then against discriminators with balanced gradients.

Both are this one task; `discriminators` makes it adversarial. A codec is what has these (all of `codecs/` do):

    sample_rate, channels             of its waveforms [B, channels, samples]
    encode_latents(wave)              -> latents [B, T, D]
    quantize(latents)                 -> quantizers.Quantized
    decode_latents(latents)           -> waveform, at least as long as what was encoded
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.discriminators import build_discriminators
from vivavoce.errors import DataError, RecipeError
from vivavoce.training.adversarial import Judgement, discriminator_loss, feature_matching, generator_loss
from vivavoce.training.balancer import Balancer
from vivavoce.training.initialise import is_convolution, unit_variance
from vivavoce.training.reconstruction import MultiScaleMel, MultiScaleSTFT
from vivavoce.training.task import Task, share, step_seed

WEIGHTS = {"mel": 2.0, "wave": 0.1, "stft": 0.0, "adversarial": 4.0, "features": 4.0, "quantizer": 1.0}


class CodecTask(Task):
    """Crops of `clips` go through the codec and back.

    clips, held_out: waveforms [channels, samples] (tensors, or a lazy sequence of them) at the codec's rate.
    weights: over mel, wave (L1), stft, adversarial, features, quantizer; AudioCraft's by default. Without
      discriminators the first three are summed; with them the first five are shares of the gradient at the waveform
      (see Balancer); the quantizer's own loss is always added.
    level: crops are scaled at random within these decibels, so that the codec does not learn one loudness.
    turns: share of the steps in which the discriminators are updated (2/3 in EnCodec).
    judge_seconds: length of the piece of each crop that the discriminators hear, another one each step (default: all of
      it): on a CPU they cost more than the codec, which learns better from longer crops.
    judge_first: steps at the beginning in which they alone learn, every time: fresh ones point anywhere, and a codec
      that already reconstructs well would be led astray by them.
    keep_codes: encoder and codebooks stay as they are and only the decoder learns, so that models of the codes that
      were trained before remain good.
    calibrate: first scale the codec's weights to unit variance on these clips (see `initialise`): for fresh ones only.
    """

    name = "codec"

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        held_out: Sequence[Tensor] = (),
        seconds: float = 1.0,
        batch: int = 16,
        seed: int = 0,
        level: tuple[float, float] = (0.0, 0.0),
        mel: str | Mapping[str, Any] = "encodec",
        weights: Mapping[str, float] | None = None,
        discriminators: str | Mapping[str, Any] | None = None,
        adversarial: str = "hinge",
        turns: float = 2 / 3,
        judge_first: int = 0,
        judge_seconds: float | None = None,
        decay: float = 0.999,
        keep_codes: bool = False,
        calibrate: bool = False,
    ):
        if not len(clips):
            raise DataError("a codec cannot be trained on no clips: the list is empty")
        unknown = [key for key in weights or {} if key not in WEIGHTS]
        if unknown:
            raise RecipeError(f"weights name '{unknown[0]}'; a codec has {', '.join(WEIGHTS)}")
        self.codec = codec
        self.clips, self.held_out = clips, held_out
        self.samples_per_crop = round(seconds * self.codec.sample_rate)
        self.batch_size, self.seed, self.level = batch, seed, level
        self.weights = {**WEIGHTS, **(weights or {})}
        self.mel = MultiScaleMel(self.codec.sample_rate, mel)
        self.stft = MultiScaleSTFT()
        self.judges = None
        if discriminators:
            with torch.random.fork_rng():
                torch.manual_seed(step_seed(seed, "discriminators"))
                self.judges = build_discriminators(discriminators)
        self.adversarial, self.keep_codes = adversarial, keep_codes
        self.turns, self.judge_first = turns, judge_first
        self.judged = self.samples_per_crop if judge_seconds is None else round(judge_seconds * codec.sample_rate)
        shares = {name: self.weights[name] for name in ("mel", "wave", "stft", "adversarial", "features")}
        self.balancer = Balancer(shares, decay=decay) if self.judges is not None else None
        if calibrate:
            self._calibrate()

    def modules(self) -> Mapping[str, nn.Module]:
        return {"codec": self.codec} if self.judges is None else {"codec": self.codec, "discriminators": self.judges}

    def optimizers(self) -> Mapping[str, Sequence[str]]:
        return {name: (name,) for name in self.modules()}

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        """Crops [batch / world, channels, samples]; clips that are shorter are followed by silence."""
        rows = []
        for row in share(self.batch_size, rank, world):
            chance = torch.Generator().manual_seed(step_seed(self.seed, step, row))
            clip = self.clips[int(torch.randint(len(self.clips), (), generator=chance))]
            low, high = self.level
            gain = 10 ** ((low + (high - low) * float(torch.rand((), generator=chance))) / 20)
            rows.append(gain * crop(clip, self.samples_per_crop, chance))
        return torch.stack(rows)

    def show(self, batch: Tensor) -> list[str]:
        rate = self.codec.sample_rate
        lengths = sorted(clip.shape[-1] / rate for clip in self.clips)
        lines = [
            f"{len(self.clips)} clips of {lengths[0]:.2f} to {lengths[-1]:.2f} s, {sum(lengths):.1f} s in all; "
            f"{batch.shape[0]} crops of {batch.shape[-1] / rate:.2f} s ({batch.shape[-1]} samples), all learned"
        ]
        for row, wave in enumerate(batch):
            heard = wave.abs().amax(0).nonzero()
            sound = int(heard[-1]) + 1 if len(heard) else 0
            level = 20 * float(wave.square().mean().clamp(min=1e-10).log10()) / 2
            lines.append(
                f"row {row}: {sound / rate:.2f} s of sound, {(batch.shape[-1] - sound) / rate:.2f} s of silence behind "
                f"it; {level:.1f} dB, peak {float(wave.abs().max()):.2f}"
            )
        return lines

    def _calibrate(self) -> None:
        """Unit variance up to the latents, the clips' own standard deviation at the waveform."""
        wave = self.batch(0, 0, 1)[:4]
        latents: list[Tensor] = []
        unit_variance(self.codec.encoder, lambda: latents.append(self.codec.encode_latents(wave)))
        last = [module for module in self.codec.decoder.modules() if is_convolution(module)][-1]
        unit_variance(
            self.codec.decoder, lambda: self.codec.decode_latents(latents[0]), last=last, scale=float(wave.std())
        )

    def resynthesize(self, wave: Tensor) -> tuple[Tensor, Any]:
        """Waveform through the codec, of the same length, and what the quantizer said."""
        if self.keep_codes:
            self.codec.quantizer.eval()  # a codebook in training mode moves with what it is shown
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.keep_codes):
            quantized = self.codec.quantize(self.codec.encode_latents(wave))
        return self.codec.decode_latents(quantized.latents)[..., : wave.shape[-1]], quantized

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.judges is not None and step < self.judge_first:
            with torch.no_grad():
                estimate, _ = self.resynthesize(batch)
            verdicts = self._judge(batch, step), self._judge(estimate, step)
            yield "discriminators", {"loss": discriminator_loss(*verdicts, self.adversarial)}
            return
        self.mel.to(batch.device)
        self.stft.to(batch.device)
        estimate, quantized = self.resynthesize(batch)
        quantizer = quantized.loss
        # With discriminators the losses hang on a leaf: one judgement serves both updates, the codec's graph only one.
        heard = estimate if self.judges is None else estimate.detach().requires_grad_(estimate.requires_grad)
        losses = {
            name: function(heard, batch)
            for name, function in (("mel", self.mel), ("wave", F.l1_loss), ("stft", self.stft))
            if self.weights[name]
        }
        logs = {**{name: value.detach() for name, value in losses.items()}, "quantizer": quantizer.detach()}
        logs |= {name: value.detach() for name, value in health(quantized).items()}
        if self.judges is None or self.balancer is None:
            total = torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()
            yield "codec", {"loss": total + self.weights["quantizer"] * quantizer, **logs}
            return
        turn = step_seed(self.seed, step, "turn") % 10**6 < self.turns * 10**6
        with torch.set_grad_enabled(turn):
            real = self._judge(batch, step)
        fake = self._judge(heard, step)
        losses |= {"adversarial": generator_loss(fake, self.adversarial), "features": feature_matching(real, fake)}
        total, shares = self.balancer({k: v for k, v in losses.items() if self.weights[k]}, heard, onto=estimate)
        logs |= {name: losses[name].detach() for name in ("adversarial", "features")}
        logs |= {name: torch.tensor(share, device=batch.device) for name, share in shares.items()}
        yield "codec", {"loss": total + self.weights["quantizer"] * quantizer, **logs}
        if turn:
            yield "discriminators", {"loss": discriminator_loss(real, fake, self.adversarial)}

    def _judge(self, wave: Tensor, step: int) -> Judgement:
        """The discriminators' opinion of the piece that they hear in this step, always in float32."""
        assert self.judges is not None
        spare = max(0, wave.shape[-1] - self.judged)
        start = step_seed(self.seed, step, "piece") % (spare + 1)
        wave = wave[..., start : start + self.judged]
        with torch.autocast(wave.device.type, enabled=False):
            return self.judges(wave.float())

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over the held-out clips: mel and L1 distance, signal-to-noise ratio, and the health of each codebook."""
        if not len(self.held_out):
            return {}
        device = next(self.codec.parameters()).device
        self.mel.to(device)
        figures: dict[str, float] = {}
        codes = []
        for clip in self.held_out:
            wave = clip.to(device)[None]
            estimate, quantized = self.resynthesize(wave)
            noise = (estimate - wave).square().mean().clamp(min=1e-12)
            values = {
                "mel": self.mel(estimate, wave),
                "wave": F.l1_loss(estimate, wave),
                "snr_db": 10 * (wave.square().mean().clamp(min=1e-12) / noise).log10(),
            }
            for name, value in values.items():
                figures[name] = figures.get(name, 0.0) + float(value) / len(self.held_out)
            codes.append(quantized.codes[0])
        every = torch.cat(codes, dim=-1)
        for level in range(every.shape[0]):
            used, perplexity = codebook_use(every[level])
            figures |= {f"used/{level}": float(used), f"perplexity/{level}": perplexity}
        return figures

    def samples(self, directory: Path, step: int) -> None:
        """Up to four held-out clips as they are and resynthesized."""
        from vivavoce.audio import Audio, write

        device = next(self.codec.parameters()).device
        for number, clip in enumerate(self.held_out[:4]):
            estimate, _ = self.resynthesize(clip.to(device)[None])
            for kind, wave in (("original", clip), ("resynthesized", estimate[0].cpu())):
                path = directory / f"{number}-{kind}.wav"
                write(path, Audio(wave.clamp(-1, 1).numpy(), self.codec.sample_rate))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.balancer is None else {"balancer": self.balancer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.balancer is not None:
            self.balancer.load_state_dict(state["balancer"])


def crop(clip: Tensor, size: int, chance: torch.Generator) -> Tensor:
    """`size` samples of a clip [channels, samples] from a random place; a shorter one is padded at the right."""
    spare = clip.shape[-1] - size
    if spare <= 0:
        return F.pad(clip, (0, -spare))
    start = int(torch.randint(spare + 1, (), generator=chance))
    return clip[..., start : start + size]


def codebook_use(codes: Tensor) -> tuple[int, float]:
    """Number of different codes in a tensor of any shape, and their perplexity exp(H); -1 is none."""
    shares = codes[codes >= 0].unique(return_counts=True)[1].double()
    shares = shares / shares.sum()
    return len(shares), float(torch.exp(-(shares * shares.log()).sum()))


def health(quantized: Any) -> dict[str, Tensor]:
    """What a quantizer says about its codebooks in a training step: "usage/0", "perplexity/0", …."""
    return {
        f"{name}/{level}": value
        for name in ("usage", "perplexity")
        for level, value in enumerate(getattr(quantized, name).float())
    }
