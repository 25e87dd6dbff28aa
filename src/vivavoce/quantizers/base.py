"""What every quantizer is to its callers: frames in, codes and quantized frames out, float32 inside."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vivavoce.errors import RequestError
from vivavoce.quantizers.collective import total

# Entries of a larger codebook are not counted one by one: usage and perplexity are of those that occur here.
LARGEST_COUNTED = 1 << 20


@dataclass
class Quantized:
    """Result of quantizing latents [B, T, D]; what lies beyond a row's length is zero in `latents` and `codes`.

    latents [B, T, D], in the dtype of the input: the quantized frames, with the gradient passed straight through.
    codes [B, K, T] int64. loss: scalar, the commitment of the encoder to its codes (0 for scalar quantizers).
    usage, perplexity [K]: share of the entries in use, and exp(entropy) of their frequencies; over the moving
    averages of the training where the quantizer keeps them, else over this batch.
    """

    latents: Tensor
    codes: Tensor
    loss: Tensor
    usage: Tensor
    perplexity: Tensor


class Quantizer(nn.Module):
    """Base. `width`: D of the latents; `codebook_sizes`: entries of each codebook, in the order of the codes.

    Parameters and buffers stay float32 when the model around is cast: codes must not depend on its precision.
    """

    width: int
    codebook_sizes: tuple[int, ...]

    @property
    def codebooks(self) -> int:
        """Number of codebooks K."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Entries of the largest codebook."""
        return max(self.codebook_sizes)

    def forward(self, latents: Tensor, lengths: Tensor | None = None, codebooks: int | None = None) -> Quantized:
        """Quantize latents [B, T, D] by the first `codebooks` codebooks (None: all). Training updates codebooks."""
        raise NotImplementedError

    def encode(self, latents: Tensor, lengths: Tensor | None = None, codebooks: int | None = None) -> Tensor:
        """Latents [B, T, D] -> codes [B, K, T] int64; nothing is updated."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] of the first K codebooks -> quantized latents [B, T, D], float32."""
        raise NotImplementedError

    def ties(self, latents: Tensor, codes: Tensor | None = None) -> Tensor:
        """Where rounding may change a code: bool [B, K, T]. With `codes`, each level follows those (teacher-forced)."""
        raise NotImplementedError

    def check_latents(self, latents: Tensor) -> None:
        """Raise `RequestError` unless latents are [B, T, width]."""
        if latents.dim() != 3 or latents.shape[2] != self.width:
            raise RequestError(f"latents {tuple(latents.shape)}: the quantizer takes [batch, frames, {self.width}]")

    def levels_used(self, codebooks: int | None) -> int:
        """`codebooks`, checked; None means all."""
        if codebooks is None:
            return self.codebooks
        if not 1 <= codebooks <= self.codebooks:
            raise RequestError(f"codebooks={codebooks}: the quantizer has 1 to {self.codebooks}")
        return codebooks

    def check_codes(self, codes: Tensor) -> None:
        """Raise `RequestError` unless codes are integers [B, K, T], K <= codebooks, inside the codebooks."""
        check_codes(codes, self.codebook_sizes)

    def _apply(self, fn, recurse=True):
        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype != tensor.dtype:
                return tensor.to(device=moved.device)
            return moved

        return super()._apply(keep_float32, recurse)


def check_codes(codes: Tensor, sizes: Sequence[int]) -> None:
    """Raise `RequestError` unless codes are integers [B, K, T], K <= len(sizes), inside codebooks of these sizes."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise RequestError(f"codes of type {codes.dtype}: integers expected, as encode gives them")
    if codes.dim() != 3 or not 1 <= codes.shape[1] <= len(sizes):
        raise RequestError(
            f"codes {tuple(codes.shape)}: expected [batch, codebooks, frames] with 1 to {len(sizes)} codebooks"
        )
    if codes.numel() == 0:
        return
    lowest, highest = codes.amin((0, 2)), codes.amax((0, 2))
    limits = torch.tensor(sizes[: codes.shape[1]], device=codes.device)
    if bool((lowest < 0).any() | (highest >= limits).any()):
        level = int(((lowest < 0) | (highest >= limits)).nonzero()[0])
        raise RequestError(
            f"codebook {level} has entries 0 to {int(limits[level]) - 1}, "
            f"the codes have {int(lowest[level])} to {int(highest[level])}: made by another tokenizer?"
        )


def health(codes: Tensor, size: int, everywhere: bool) -> tuple[Tensor, Tensor]:
    """Share of the `size` entries that occur in `codes`, and their perplexity; everywhere: in all processes' codes."""
    if size > LARGEST_COUNTED:
        found = codes.unique(return_counts=True)[1].float()
        return found.new_tensor(len(found) / size), perplexity(found)
    counts = torch.bincount(codes.flatten(), minlength=size).float()
    counts = total(counts) if everywhere else counts
    return (counts > 0).float().mean(), perplexity(counts)


def drawn_depths(
    rows: int, used: int, levels: Sequence[int], dropout: float, generator: torch.Generator | None
) -> Tensor:
    """How many codebooks each row uses, [rows]: a share `dropout` of them one of `levels`, `used` at most; the others
    `used`."""
    depth = torch.full((rows,), used)
    if dropout:
        draws = torch.rand(2, rows, generator=generator)
        drawn = torch.tensor(levels)[(draws[1] * len(levels)).long()].clamp(max=used)
        depth = torch.where(draws[0] < dropout, drawn, depth)
    return depth


def perplexity(frequencies: Tensor) -> Tensor:
    """exp(entropy) of counts [..., C] (C if all entries are equally frequent, 1 if one is; 0 without counts)."""
    whole = frequencies.sum(-1, keepdim=True)
    p = frequencies / whole.clamp(min=1e-20)
    return torch.where(whole[..., 0] > 0, (-torch.special.xlogy(p, p).sum(-1)).exp(), whole[..., 0])
