"""Training tokens that are aligned to text, by the units of speech that a decoder says from them and the text.

Source: TASTE (arXiv:2504.07053, section 2.3; STAGE1_TRAIN of mtkresearch/TASTE-SpokenLM, run_train_taste.sh). The
authors' three steps are told apart by what the decoder hears: the text alone, then the tokens' vectors, then codes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.errors import DataError, RecipeError, RequestError
from vivavoce.tokenizers.text_aligned import Said, TextAlignedCodec, collated
from vivavoce.training.codec_task import CodecTask, codebooks_use, health

HEARD = ("text", "vectors", "codes")


class AlignedTask(CodecTask):
    """Whole clips and their `texts` through a `TextAlignedCodec` towards the units of speech: cross-entropy of each,
    and what the quantizer asks for.

    texts: of each clip; held_out_texts: of each held-out one. heard: what the decoder is told beside the voice: `text`
    alone, also the tokens' `vectors`, or these as `codes` tell them. Clips longer than `seconds`, without a text or
    with one too long are not learned from. Other options: `CodecTask`'s.
    """

    name = "text_aligned"

    def __init__(
        self,
        codec: Any,
        clips: Sequence[Tensor],
        *,
        texts: Sequence[str] = (),
        held_out_texts: Sequence[str] = (),
        heard: str = "codes",
        seconds: float = 30.0,
        **options: Any,
    ):
        if not isinstance(codec, TextAlignedCodec):
            raise RecipeError("this codec's tokens are not aligned to text: take a tokenizer of kind text_aligned")
        if heard not in HEARD:
            raise RecipeError(f"heard is {heard!r}: one of {', '.join(HEARD)}")
        super().__init__(codec, clips, seconds=seconds, **options)
        self.heard = heard
        self.texts, self.refused = self._read(clips, texts)
        self.held_out_said, _ = self._read(self.held_out, held_out_texts)
        self.usable = [row for row, text in enumerate(self.texts) if text is not None]
        if texts and not self.usable:
            raise DataError(f"no clip of at most {seconds:g} s has a text: a corpus with transcripts is needed; the "
                            f"first of {len(self.refused)} left out: {self.refused[0]}")  # fmt: skip

    def _read(
        self, clips: Sequence[Tensor], texts: Sequence[str]
    ) -> tuple[list[list[list[int]] | None], list[str]]:
        """The tokens of each clip's words, None of one that is not learned from; and why."""
        found: list[list[list[int]] | None] = []
        why: list[str] = []
        for row, (clip, text) in enumerate(zip(clips, texts)):
            try:
                if clip.shape[-1] > self.samples_per_crop:
                    raise RequestError(f"clip {row} lasts {clip.shape[-1] / self.codec.sample_rate:.1f} s")
                found.append(self.codec.tokens(text, f"the text of clip {row}"))
            except RequestError as error:
                found.append(None)
                why.append(str(error))
        return found, why

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:  # type: ignore[override]
        """`wave` [B, 1, S] with `lengths` [B] in samples; `tokens`, `words` [B, N] with `counts` [B]."""
        rows = self.whole_clips(self.usable, step, rank, world)
        return self._collated([(wave, self.texts[clip]) for clip, wave in rows])

    @staticmethod
    def _collated(rows: Sequence[tuple[Tensor, Any]]) -> dict[str, Tensor]:
        waves, said = [wave[0] for wave, _ in rows], collated([text for _, text in rows])
        return {
            "wave": nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None],
            "lengths": torch.tensor([len(wave) for wave in waves]),
            "tokens": said.tokens,
            "words": said.words,
            "counts": said.counts,
        }

    def show(self, batch: Any) -> list[str]:
        lines = [f"{len(self.usable)} of {len(self.clips)} clips; {len(batch['wave'])} whole ones, padded"]
        lines += [f"left out: {why}" for why in self.refused[:3]]
        for length, tokens, count in zip(batch["lengths"].tolist(), batch["tokens"].tolist(), batch["counts"].tolist()):
            units = int(self.codec.speech.frames(length))
            text = self.codec.vocabulary.text(tokens[:count]).strip()
            lines.append(f"{length / self.codec.sample_rate:.2f} s, {count} tokens, {units} units: '{text}'")
        return lines

    def _losses(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
        """Nats a unit of a batch, the share of them that is right, and what the quantizer said (None: not asked)."""
        said, quantized, vectors = Said(*(batch[name] for name in ("tokens", "words", "counts"))), None, None
        if self.heard != "text":
            vectors = self.codec.encode_latents(batch["wave"], said, batch["lengths"])
        if self.heard == "codes":
            quantized = self.codec.quantize(vectors, said.counts)
            vectors = quantized.latents
        return *self.codec.unit_losses(batch["wave"], said, vectors, batch["lengths"]), quantized

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        units, right, quantized = self._losses(batch)
        loss, logs = units, {"units": units.detach(), "accuracy": right.detach()}
        if quantized is not None:
            loss = loss + self.weights["quantizer"] * quantized.loss
            logs |= {"quantizer": quantized.loss.detach(), **health(quantized)}
        yield "codec", {"loss": loss, **logs}

    def _held_out(self) -> list[tuple[Tensor, list[list[int]]]]:
        """Held-out clips that have a text."""
        pairs = zip(self.held_out, self.held_out_said)
        return [(clip, text) for clip, text in pairs if text is not None]

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Over held-out clips with texts: nats a unit, the share that is right, and the codebooks' health."""
        device, rows = next(self.codec.parameters()).device, self._held_out()
        if not rows:
            return {}
        figures, codes = {"units": 0.0, "accuracy": 0.0}, []
        for row in rows:
            batch = {name: value.to(device) for name, value in self._collated([row]).items()}
            units, right, quantized = self._losses(batch)
            figures = {"units": figures["units"] + float(units) / len(rows),
                       "accuracy": figures["accuracy"] + float(right) / len(rows)}  # fmt: skip
            codes += [] if quantized is None else [quantized.codes[0]]
        return figures | (codebooks_use(torch.cat(codes, dim=-1)) if codes else {})

    def samples(self, directory: Path, step: int) -> None:
        """Up to four held-out clips as they are, and resynthesized from codes and text."""
        from vivavoce.audio import Audio, write

        if self.heard != "codes":
            return
        device = next(self.codec.parameters()).device
        for number, (clip, text) in enumerate(self._held_out()[:4]):
            wave, said = clip.to(device)[None], collated([text])
            said, codes = self.codec.encode(wave, said)
            length = torch.tensor([wave.shape[-1]], device=device)
            made = self.codec.decode(codes, said, length, **self.codec.beside(wave))
            for kind, sound in (("original", clip), ("resynthesized", made[0].cpu())):
                path = directory / f"{number}-{kind}.wav"
                write(path, Audio(sound.clamp(-1, 1).numpy(), self.codec.sample_rate))
