"""Training any codec: reconstruction first, then against discriminators with balanced gradients.

Both are this one task; `discriminators` makes it adversarial. A codec is what has these (all of `codecs/` do):

    sample_rate, channels             of its waveforms [B, channels, samples]
    encode_latents(wave)              -> latents [B, T, D]
    quantize(latents)                 -> quantizers.Quantized
    decode_latents(latents)           -> waveform, at least as long as what was encoded
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.codecs.registry import codec_of, config_of
from vivavoce.errors import DataError, RecipeError
from vivavoce.schema.parts import made
from vivavoce.training.adversarial import Judgement, discriminator_loss, feature_matching, generator_loss
from vivavoce.training.balancer import Balancer, passed
from vivavoce.training.crops import as_loud, crop, played, turned
from vivavoce.training.initialise import is_convolution, unit_variance
from vivavoce.training.judges import judges_of
from vivavoce.training.listening import PerceptualDistance
from vivavoce.training.reconstruction import MultiScaleMel, MultiScaleSTFT
from vivavoce.training.spectral_losses import TERMS, SpectralTerms
from vivavoce.training.supervision import Supervision
from vivavoce.training.task import Task, share, step_seed

WEIGHTS = {"mel": 2.0, "wave": 0.1, "stft": 0.0, "adversarial": 4.0, "features": 4.0, "quantizer": 1.0}
WEIGHTS |= {name: 0.0 for name in (*TERMS, "perceptual", "consistency")}

# What else crops can go through than a codec's codes, and what it must have for it.
WAYS = {"features": "uncoded", "unfiltered": "unfiltered"}


class CodecTask(Task):
    """Crops of `clips` go through the codec and back.

    clips, held_out: waveforms [channels, samples] (tensors, or a lazy sequence of them) at the codec's rate.
    weights: over mel, wave (L1), stft, adversarial, features, quantizer; AudioCraft's by default. Without
      discriminators the first three are summed; with them the first five are shares of the gradient at the waveform
      (see Balancer); the quantizer's own loss is always added.
      amplitude, phase, complex, mdct (see `SpectralTerms`) weigh like these where they are named. consistency: of
      codecs that predict spectra (`SpectrumCodec`), how much those of the waveform may differ; always added.
      perceptual: how far waveforms are apart as an encoder hears them.
    spectra: fft_size and hop of amplitude, phase, complex and mdct.
    perceptual: that encoder and its layer (`PerceptualDistance`): {teacher: {…}, layer: …}.
    through: `codes`; `features`: of a `FeatureCodec`, the vocoder alone, on features that are not quantized;
      `unfiltered`: of a `PostFilteredCodec`, the codec without its post-filter.
    discriminators: a preset or members (`build_discriminators`). judges_from: a run directory whose trained ones, in
      their form, are taken instead: a trained codec adapts to other voices with the judges that it had.
    level: crops are scaled at random within these decibels, so that the codec does not learn one loudness.
    loudness: crops are brought to so many LUFS before (None: as they are; -16 in DAC). rotate: the same random angle is
      added to the phases of all of a crop's frequencies (DAC), so that the codec does not learn one polarity.
    speed: crops are played at random between these factors of their speed, pitch and formants with it: voices between
      those of few speakers.
    balance: whether weights are shares of the gradient; else they multiply the losses, and those of the discriminators
      are summed over them and their maps (HiFi-GAN, DAC).
    turns: share of the steps in which the discriminators are updated (2/3 in EnCodec).
    judge_seconds: length of the piece of each crop that the discriminators hear, another one each step (default: all of
      it): on a CPU they cost more than the codec, which learns better from longer crops.
    judge_first: steps at the beginning in which they alone learn, every time: fresh ones point anywhere, and a codec
      that already reconstructs well would be led astray by them.
    keep_codes: encoder and codebooks stay as they are and only the decoder learns, so that models of the codes that
      were trained before remain good.
    anew: the decoder begins from fresh weights, whatever was trained before (APCodec+, arXiv:2410.22807: the codes of
      a whole codec, then a decoder of its own for them).
    calibrate: first scale the codec's weights to unit variance on these clips (see `initialise`): for fresh ones only.
    codebooks: a schedule of the bit rate, [[step, count], …]: from each step on so many codebooks learn; before the
      first all of them, whatever number the codec uses otherwise. Rates in between are the quantizer's dropout.
    supervision: what else it learns from: distillation, feature_reconstruction, time_invariance, teacher, each with its
      weight and options (see `supervision`); always added, and in the log under their names.
    """

    name = "codec"
    supervised: type[Supervision] = Supervision

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
        loudness: float | None = None,
        rotate: bool = False,
        speed: tuple[float, float] = (1.0, 1.0),
        mel: str | Mapping[str, Any] = "encodec",
        weights: Mapping[str, float] | None = None,
        spectra: Mapping[str, int] | None = None,
        perceptual: Mapping[str, Any] | None = None,
        through: str = "codes",
        discriminators: str | Mapping[str, Any] | None = None,
        judges_from: str | None = None,
        adversarial: str = "hinge",
        balance: bool = True,
        turns: float = 2 / 3,
        judge_first: int = 0,
        judge_seconds: float | None = None,
        decay: float = 0.999,
        keep_codes: bool = False,
        anew: bool = False,
        calibrate: bool = False,
        codebooks: Sequence[Sequence[int]] = (),
        supervision: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        if not len(clips):
            raise DataError("a codec cannot be trained on no clips: the list is empty")
        unknown = [key for key in weights or {} if key not in WEIGHTS]
        if unknown:
            raise RecipeError(f"weights name '{unknown[0]}'; a codec has {', '.join(WEIGHTS)}")
        if not 0 < speed[0] <= speed[1]:
            raise RecipeError(f"speed is {list(speed)}: two factors above 0, the smaller one first")
        if through != "codes" and not hasattr(codec, WAYS.get(through, "")):
            raise RecipeError(f"through is {through!r}: codes, features of a codec that has some, or unfiltered")
        if bool((weights or {}).get("perceptual")) != bool(perceptual):
            raise RecipeError("perceptual: it needs a weight, and its weight needs a teacher")
        self.schedule = _schedule(codebooks, codec)
        self.codec = codec
        self.way = codec if through == "codes" else getattr(codec, WAYS[through])()
        self.clips, self.held_out = clips, held_out
        self.samples_per_crop = round(seconds * self.codec.sample_rate)
        self.batch_size, self.seed, self.level, self.speed = batch, seed, level, speed
        self.loudness, self.rotate = loudness, rotate
        self.weights = {**WEIGHTS, **(weights or {})}
        self.mel = MultiScaleMel(self.codec.sample_rate, mel)
        self.stft = MultiScaleSTFT()
        self.terms = SpectralTerms(self.weights, **(spectra or {}))
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(seed, "discriminators"))
            self.judges = judges_of(discriminators, judges_from)
        self.adversarial, self.keep_codes = adversarial, keep_codes
        self.shares_of_judges: Sequence[float] | None = getattr(self.judges, "weights", None)
        self.turns, self.judge_first = turns, judge_first
        self.judged = self.samples_per_crop if judge_seconds is None else round(judge_seconds * codec.sample_rate)
        self.perceptual = None
        if perceptual:
            with torch.random.fork_rng():
                torch.manual_seed(step_seed(seed, "perceptual"))
                self.perceptual = made("perceptual", PerceptualDistance, codec.sample_rate, **perceptual)
        waves = ("mel", "wave", "stft", "perceptual", "adversarial", "features", *TERMS)
        shares = {name: self.weights[name] for name in waves}
        self.balancer = Balancer(shares, decay=decay) if self.judges is not None and balance else None
        self.supervision = None
        if supervision:
            with torch.random.fork_rng():
                torch.manual_seed(step_seed(seed, "supervision"))
                self.supervision = self.supervised(codec, supervision)
        if anew:
            self._begin_anew()
        if calibrate:
            self._calibrate()

    def modules(self) -> Mapping[str, nn.Module]:
        found = {"codec": self.codec, "supervision": self.supervision, "discriminators": self.judges}
        return {name: module for name, module in found.items() if module is not None}

    def optimizers(self) -> Mapping[str, Sequence[str]]:
        codec = ("codec",) if self.supervision is None else ("codec", "supervision")
        return {"codec": codec} if self.judges is None else {"codec": codec, "discriminators": ("discriminators",)}

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        """Crops [batch / world, channels, samples]; clips that are shorter are followed by silence."""
        rows = self._drawn(range(len(self.clips)), step, rank, world)
        return torch.stack([gain * self._crop(self.clips[clip], chance) for clip, gain, chance in rows])

    def whole_clips(self, usable: Sequence[int], step: int, rank: int, world: int) -> list[tuple[int, Tensor]]:
        """Some of the `usable` clips, each its number and itself at a level drawn: of tasks that need whole ones."""
        return [(clip, gain * self.clips[clip]) for clip, gain, _ in self._drawn(usable, step, rank, world)]

    def _drawn(
        self, usable: Sequence[int], step: int, rank: int, world: int
    ) -> Iterator[tuple[int, float, torch.Generator]]:
        """The number of the clip of each row, its gain, and the chance that is left."""
        for row in share(self.batch_size, rank, world):
            chance = torch.Generator().manual_seed(step_seed(self.seed, step, row))
            clip = usable[int(torch.randint(len(usable), (), generator=chance))]
            low, high = self.level
            yield clip, 10 ** ((low + (high - low) * float(torch.rand((), generator=chance))) / 20), chance

    def place(self, step: int, row: int) -> tuple[int, int]:
        """Which clip a crop of a batch is of, and where it begins: the draws of `batch`, at the clips' own speed."""
        chance = torch.Generator().manual_seed(step_seed(self.seed, step, row))
        clip = int(torch.randint(len(self.clips), (), generator=chance))
        torch.rand((), generator=chance)
        spare = self.clips[clip].shape[-1] - self.samples_per_crop
        return clip, int(torch.randint(spare + 1, (), generator=chance)) if spare > 0 else 0

    def _crop(self, clip: Tensor, chance: torch.Generator) -> Tensor:
        """A crop of the clip, played at one of the speeds, at its loudness, its phases turned."""
        (low, high), factor = self.speed, 1.0
        if not low == high == 1:
            factor = low * (high / low) ** float(torch.rand((), generator=chance))
        found = played(crop(clip, round(self.samples_per_crop * factor), chance), self.samples_per_crop)
        if self.loudness is not None:
            found = as_loud(found, self.codec.sample_rate, self.loudness)
        return turned(found, 2 * math.pi * float(torch.rand((), generator=chance))) if self.rotate else found

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

    def _begin_anew(self) -> None:
        """Weights of a decoder of the same configuration that has learned nothing."""
        options = config_of(self.codec)
        if options is None:
            raise RecipeError("anew: this codec was not built from a configuration, so there is no other like it")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(self.seed, "decoder"))
            self.codec.decoder.load_state_dict(codec_of(options).decoder.state_dict())

    def _calibrate(self) -> None:
        """Unit variance up to the latents, the clips' own standard deviation at the waveform."""
        wave = self.batch(0, 0, 1)[:4]
        latents: list[Tensor] = []
        unit_variance(self.codec.encoder, lambda: latents.append(self.codec.encode_latents(wave)))
        last = [module for module in self.codec.decoder.modules() if is_convolution(module)][-1]
        unit_variance(
            self.codec.decoder, lambda: self.codec.decode_latents(latents[0]), last=last, scale=float(wave.std())
        )

    def codebooks_at(self, step: int) -> int | None:
        """How many codebooks learn in a step (rows of quantizer dropout may use fewer); None: those in use."""
        if self.keep_codes:
            return None  # the decoder learns what it will hear
        found = getattr(getattr(self.codec, "quantizer", None), "codebooks", None)
        for first, count in self.schedule:
            found = count if step >= first else found
        return found

    def resynthesize(self, wave: Tensor, codebooks: int | None = None) -> tuple[Tensor, Any]:
        """Waveform through the codec, of the same length, and what the quantizer said; codebooks None: those in use."""
        with in_use(self.codec, codebooks):
            return self._through(wave)

    def _through(self, wave: Tensor) -> tuple[Tensor, Any]:
        if self.keep_codes:
            self.codec.quantizer.eval()  # a codebook in training mode moves with what it is shown
        if self.supervision is not None:
            self.supervision.settle(self.codec)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.keep_codes):
            self.latents = self.way.encode_latents(wave)
            quantized = self.way.quantize(self.latents)
        if self.weights["consistency"] and hasattr(self.codec, "inconsistency"):
            spectra = self.codec.spectra(quantized.latents)
            made = self.codec.synthesize(spectra)
            apart = self.weights["consistency"] * self.codec.inconsistency(spectra, made)
            return made[..., : wave.shape[-1]], replace(quantized, loss=quantized.loss + apart)
        return self.way.decode_latents(quantized.latents)[..., : wave.shape[-1]], quantized

    def updates(self, batch: Tensor, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.judges is not None and step < self.judge_first:
            with torch.no_grad():
                estimate, _ = self.resynthesize(batch, self.codebooks_at(step))
            verdicts = self._judge(batch, step), self._judge(estimate, step)
            yield "discriminators", {"loss": self._judges_loss(*verdicts)}
            return
        self.mel.to(batch.device)
        self.stft.to(batch.device)
        self.terms.to(batch.device)
        if self.perceptual is not None:
            self.perceptual.to(batch.device).eval()
        estimate, quantized = self.resynthesize(batch, self.codebooks_at(step))
        quantizer = quantized.loss
        taught = {}
        if self.supervision is not None:
            taught = self.supervision(self.codec, batch, self.latents, quantized, estimate)
        # With discriminators the losses hang on a leaf: one judgement serves both updates, the codec's graph only one.
        heard = estimate if self.judges is None else estimate.detach().requires_grad_(estimate.requires_grad)
        losses = {
            name: function(heard, batch)
            for name, function in (
                ("mel", self.mel), ("wave", F.l1_loss), ("stft", self.stft), ("perceptual", self.perceptual)
            )
            if self.weights[name] and function is not None
        } | self.terms(heard, batch)  # fmt: skip
        # In a run's metrics, `phase` is that of the training.
        logs = {"phases" if name == "phase" else name: value.detach() for name, value in losses.items()}
        logs["quantizer"] = quantizer.detach()
        logs |= {name: value.detach() for name, value in taught.items()}
        besides = self.weights["quantizer"] * quantizer
        if self.supervision is not None:
            besides = besides + self.supervision.total(taught)
        logs |= {name: value.detach() for name, value in health(quantized).items()}
        if self.judges is None:
            yield "codec", {"loss": self._weighed(losses) + besides, **logs}
            return
        turn = self.judges_learn(step)
        with torch.set_grad_enabled(turn):
            real = self._judge(batch, step)
        fake = self._judge(heard, step)
        summed = self.balancer is None
        losses["adversarial"] = generator_loss(fake, self.adversarial, summed, self.shares_of_judges)
        losses["features"] = feature_matching(real, fake, summed=summed, weights=self.shares_of_judges)
        chosen = {name: value for name, value in losses.items() if self.weights[name]}
        shares: dict[str, float] = {}
        if self.balancer is None:
            total = passed(self._weighed(chosen), heard, onto=estimate)
        else:
            total, shares = self.balancer(chosen, heard, onto=estimate, parts=self.batch_size / len(batch))
        logs |= {name: losses[name].detach() for name in ("adversarial", "features")}
        logs |= {name: torch.tensor(share, device=batch.device) for name, share in shares.items()}
        yield "codec", {"loss": total + besides, **logs}
        if turn:
            yield "discriminators", {"loss": self._judges_loss(real, fake)}

    def judges_learn(self, step: int) -> bool:
        """Whether the discriminators are updated in a step."""
        return step_seed(self.seed, step, "turn") % 10**6 < self.turns * 10**6

    def _weighed(self, losses: Mapping[str, Tensor]) -> Tensor:
        terms = [self.weights[name] * value for name, value in losses.items()]
        return torch.stack(terms).sum() if terms else torch.zeros(())  # what a teacher tells may be all

    def _judges_loss(self, real: Judgement, fake: Judgement) -> Tensor:
        return discriminator_loss(real, fake, self.adversarial, self.balancer is None, self.shares_of_judges)

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
            if self.supervision is not None:
                values |= self.supervision.figures(self.codec, wave, quantized.codes)
            for name, value in values.items():
                figures[name] = figures.get(name, 0.0) + float(value) / len(self.held_out)
            codes.append(quantized.codes[0])
        every = torch.cat(codes, dim=-1)
        return figures | codebooks_use(every)

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


@contextmanager
def in_use(codec: Any, codebooks: int | None) -> Iterator[None]:
    """The codec with that many codebooks in use inside, with its own number afterwards; None changes nothing."""
    if codebooks is None or codebooks == codec.codebooks:
        yield
        return
    before = codec.codebooks
    codec.codebooks = codebooks
    try:
        yield
    finally:
        codec.codebooks = before


def _schedule(codebooks: Sequence[Sequence[int]], codec: Any) -> list[tuple[int, int]]:
    """Pairs of a step and a number of codebooks, checked."""
    found: list[tuple[int, int]] = []
    most = getattr(getattr(codec, "quantizer", None), "codebooks", 0)
    for pair in codebooks:
        first, count = pair if len(pair) == 2 else (-1, -1)
        if first < 0 or not 1 <= count <= most or (found and first <= found[-1][0]):
            told = [list(each) for each in codebooks]
            raise RecipeError(f"codebooks is {told}: pairs of a step and 1 to {most}, in order")
        found.append((int(first), int(count)))
    return found


def codebooks_use(codes: Tensor) -> dict[str, float]:
    """`codebook_use` of each codebook of codes [K, T], as the figures `used/0`, `perplexity/0`, …."""
    figures: dict[str, float] = {}
    for level, row in enumerate(codes):
        used, perplexity = codebook_use(row)
        figures |= {f"used/{level}": float(used), f"perplexity/{level}": perplexity}
    return figures


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
