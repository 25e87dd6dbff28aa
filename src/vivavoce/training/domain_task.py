"""Training a codec on crops of known domains, and by what it says of frames that were hidden from it (UniCodec).

Source: Jiang et al., arXiv:2502.20067, sections 3.2 and 3.4; Jiang-Yidi/UniCodec, decoder/experiment_contrastive.py and
encoder/modules/seanet.py; wav2vec 2.0's contrastive loss (arXiv:2006.11477, equation 3).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.quantizers import Quantized
from vivavoce.quantizers.domains import DomainVectorQuantizer
from vivavoce.training.codec_task import in_use
from vivavoce.training.ssl_contrastive import contrast, other_hidden
from vivavoce.training.ssl_masking import Masking, mask_rows
from vivavoce.training.task import step_seed
from vivavoce.training.text_supervision import TextSupervision
from vivavoce.training.told_task import ToldTask


class MaskedContrast(nn.Module):
    """What is quantized where frames were hidden is like the convolutions' frame that stood there, and unlike those of
    other hidden frames of its row: cross-entropy of cosines over `temperature`.

    mask: options of `Masking`; negatives: others for each. A learned vector stands where frames are hidden.
    """

    def __init__(
        self, codec: Any, mask: Mapping[str, Any] | None = None, negatives: int = 100, temperature: float = 0.1
    ):
        super().__init__()
        if not hasattr(codec, "in_context"):
            raise RecipeError("masked_contrast: this codec does not hear its frames in context")
        self.masking = Masking(**{"prob": 0.65, **(mask or {})})
        self.negatives, self.temperature = negatives, temperature
        self.vector = nn.Parameter(torch.rand(codec.quantizer.width))
        self.hidden: tuple[Tensor, Tensor, Tensor] | None = None

    def hide(self, frames: Tensor, seed: int) -> Tensor:
        """The convolutions' frames [B, T, D] with spans of them hidden, by chance of `seed` with the row's number."""
        seeds = torch.tensor([step_seed(seed, "hidden", row) for row in range(len(frames))])
        chances = [torch.Generator().manual_seed(int(row)) for row in seeds]
        mask = mask_rows(self.masking, [frames.shape[1]] * len(frames), chances).to(frames.device)
        self.hidden = (frames, mask, seeds)
        return torch.where(mask[..., None], self.vector.to(frames.dtype), frames)

    def forward(self, codec: Any, wave: Tensor, latents: Tensor, quantized: Quantized, sound: Any = None) -> Tensor:
        """Nats; 0 where nothing was hidden."""
        if self.hidden is None:
            return latents.sum() * 0
        frames, mask, seeds = self.hidden
        others = other_hidden(mask, self.negatives, seeds)
        logits = contrast(quantized.latents[mask], frames, others, mask) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


class DomainSupervision(TextSupervision):
    """`TextSupervision` with the term of this file."""

    kinds: Mapping[str, type[nn.Module]] = {**TextSupervision.kinds, "masked_contrast": MaskedContrast}


class DomainTask(ToldTask):
    """`CodecTask` of a codec whose codebook is divided among domains: crops are quantized within their own.

    domains: of each clip, "" where not known. With `supervision: {masked_contrast: …}` frames are hidden before the
    transformer, and what it makes of the others is what is reconstructed from, too: the paper's second stage. Other
    options: `CodecTask`'s.
    """

    supervised = DomainSupervision

    def __init__(self, codec: Any, clips: Sequence[Tensor], *, domains: Sequence[str] = (), **options: Any):
        if not isinstance(getattr(codec, "quantizer", None), DomainVectorQuantizer):
            raise RecipeError("domains: this codec's codebook is not divided among any")
        super().__init__(codec, clips, **options)
        self.domains = codec.quantizer.numbers([name or None for name in domains or [""] * len(clips)])
        self._rows, self._step = self.domains[:0], 0

    def updates(self, batch: Any, step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        self._rows, self._step = self.domains[batch["clips"].cpu()], step
        yield from super().updates(batch, step)

    def resynthesize(self, wave: Tensor, codebooks: int | None = None) -> tuple[Tensor, Any]:
        """As any codec's; while training, within the crops' domains, and with frames hidden where that is asked for."""
        if not self.codec.training:
            return super().resynthesize(wave, codebooks)
        with in_use(self.codec, codebooks), self.codec.quantizer.within(self._rows):
            term = None if self.supervision is None else dict(self.supervision.terms.items()).get("masked_contrast")
            frames = self.codec.local(wave)
            if isinstance(term, MaskedContrast):
                frames = term.hide(frames, step_seed(self.seed, self._step))
            self.latents = self.codec.in_context(frames)
            quantized = self.codec.quantize(self.latents)
            return self.codec.decode_latents(quantized.latents)[..., : wave.shape[-1]], quantized
