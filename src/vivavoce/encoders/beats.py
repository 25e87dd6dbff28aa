"""BEATs: a transformer over patches of a mel spectrogram, and the tokenizer of patches that teaches it.

Source: Chen et al., arXiv:2212.09058; microsoft/unilm, beats/ (BEATs.py, backbone.py, Tokenizers.py, quantizer.py).
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import kaldi_fbank, kaldi_frames
from vivavoce.encoders.base import Layer, Trunk
from vivavoce.encoders.positions import PositionConvolution
from vivavoce.encoders.relative_bias import GatedRelativeBias
from vivavoce.encoders.speech_transformer import Block, SpeechTransformerConfig, through_blocks
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import zero_padding
from vivavoce.quantizers.sphere import SphereCodebook

MEAN, DEVIATION = 15.41663, 6.55582  # of the authors' log energies
HOP, WINDOW = 160, 400


@dataclass(frozen=True)
class BeatsConfig:
    """Sizes; the defaults are those of the published models. patch: bands and frames of a patch; local: width of its
    embedding before the projection. deep: whether DeepNet's residuals weigh more. codes, code_width: of the tokenizer
    of patches; 0 for none. dropout: in training only."""

    mels: int = 128
    patch: int = 16
    local: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    relative_buckets: int = 320
    relative_distance: int = 800
    deep: bool = True
    codes: int = 0
    code_width: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        if self.patch < 1 or self.mels % self.patch:
            raise RecipeError(f"mels {self.mels}, patch {self.patch}: a multiple of it, at least 1")
        if self.width % self.heads or self.width % self.position_groups:
            raise RecipeError(f"width {self.width} must be a multiple of heads and of position_groups")

    @property
    def blocks(self) -> SpeechTransformerConfig:
        """Of the blocks."""
        return SpeechTransformerConfig(
            width=self.width, layers=self.layers, heads=self.heads, hidden=self.hidden, dropout=self.dropout,
            position_groups=self.position_groups, relative_buckets=self.relative_buckets,
        )  # fmt: skip


class Beats(Trunk):
    """Waveforms [B, samples] -> patches [B, T, width], those of a column of frames from the lowest band up: 49 or 50 a
    second as published. What is left behind the last whole column is dropped."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.sample_rate, self.width, self.layers = 16000, config.width, config.layers
        self.bands, self.local_width = config.mels // config.patch, config.patch**2
        column = HOP * config.patch / self.sample_rate  # seconds
        self.frame_rate = self.bands / column
        self.piece, self.around = 320 * column, 64 * column  # whole columns
        self.patches = nn.Linear(self.local_width, config.local, bias=False)
        self.patch_norm = nn.LayerNorm(config.local)
        self.projection = nn.Linear(config.local, config.width)
        self.position = PositionConvolution(config.width, config.position_kernel, config.position_groups)
        self.norm = nn.LayerNorm(config.width)
        self.body = DeepBlocks(config)
        self.tokenizer = PatchCodes(config.width, config.codes, config.code_width) if config.codes else None

    def sizes(self):
        return asdict(self.config)

    def frames(self, samples):
        return kaldi_frames(samples, self.sample_rate) // self.config.patch * self.bands

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts, patch = self.frames(lengths), self.config.patch
        size = max(int(counts.max()) // self.bands, 1) if len(counts) else 1
        needed = (size * patch - 1) * HOP + WINDOW
        mel = kaldi_fbank(F.pad(wave, (0, max(0, needed - wave.shape[1]))), self.sample_rate, self.config.mels)
        mel = ((mel[:, : size * patch] - MEAN) / (2 * DEVIATION)).to(self.projection.weight.dtype)
        square = mel.unflatten(2, (self.bands, patch)).unflatten(1, (size, patch)).transpose(2, 3)
        return zero_padding(square.flatten(3).flatten(1, 2), counts), counts

    def embed(self, frames: Tensor) -> Tensor:
        return self.projection(self.patch_norm(self.patches(frames)))

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        x = zero_padding(x, counts)
        return F.dropout(self.norm(x + self.position(x, counts)), self.config.dropout, self.training)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        return self.body(x, counts, layer=layer)

    def attend_some(self, x: Tensor, counts: Tensor, at: Tensor) -> Tensor:
        return self.body(x, counts, at)

    def codes(self, frames: Tensor, counts: Tensor) -> Tensor:
        """Codes [B, T] int64 of local frames [B, T, C], by the tokenizer of patches; `RecipeError` without one that has
        learned."""
        if self.tokenizer is None:
            raise RecipeError("encoder: it has no tokenizer of patches: give it `codes`")
        if not bool(self.tokenizer.codebook.initialized):
            raise RecipeError("encoder: its tokenizer of patches has learned nothing: train it by `patch_tokenizer`")
        return self.tokenizer.search(self.context(self.embed(frames), counts))


class DeepBlocks(nn.Module):
    """Transformer blocks with gated relative positions, `layers` of them, or of the config's number."""

    def __init__(self, config: BeatsConfig, layers: int | None = None):
        super().__init__()
        layers = config.layers if layers is None else layers
        self.bias = GatedRelativeBias(config.heads, config.relative_buckets, config.relative_distance)
        self.blocks = nn.ModuleList(DeepBlock(config.blocks, layers if config.deep else 0) for _ in range(layers))

    def forward(self, x: Tensor, counts: Tensor, at: Tensor | None = None, layer: Layer = None) -> Tensor:
        """Frames [B, T, D], of which counts [B] are valid, at places at [B, T] (None: one after another)."""
        at = torch.arange(x.shape[1], device=x.device)[None] if at is None else at
        return through_blocks(self.blocks, x, counts, layer, self.bias(at))


class DeepBlock(Block):
    """A block whose norms stand behind the sums, in which the residual weighs (2 x layers)^(1/4), and whose weights
    begin smaller (DeepNet, arXiv:2203.00555); `layers` 0: weighs 1. The gates of positions hear the queries."""

    def __init__(self, config: SpeechTransformerConfig, layers: int):
        super().__init__(config)
        self.weight = (2 * layers) ** 0.25 if layers else 1.0
        if layers:
            for part in (self.value, self.output, self.widen, self.narrow):
                nn.init.xavier_normal_(part.weight, gain=(8 * layers) ** -0.25)
            for part in (self.query, self.key):
                nn.init.xavier_normal_(part.weight)

    def forward(self, x: Tensor, mask: Tensor | None, shared: Tensor | None) -> Tensor:
        x = self.attention_norm(self.weight * x + self.attend(x, mask, shared))
        return self.feedforward_norm(self.weight * x + self.feedforward(x))

    def gated(self, x: Tensor, query: Tensor) -> Tensor:
        return query


class PatchCodes(nn.Module):
    """Frames [..., width] -> one of `codes` directions of `code_width` dimensions (section 3.2.2)."""

    def __init__(self, width: int, codes: int, code_width: int):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))
        self.codebook = SphereCodebook(codes, code_width)

    def search(self, x: Tensor) -> Tensor:
        """Codes of frames [..., width]."""
        return self.codebook.search(self.map(x).flatten(0, -2)).view(x.shape[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [N, width] -> their directions, quantized, with the gradient passed straight through [N, code_width];
        the codes [N]; the mean squared distance of each direction's values from the entry's. Training moves entries."""
        z = F.normalize(self.map(x).float(), dim=-1)
        if self.training:
            self.codebook.start(z)
        codes = self.codebook.search(z)
        entries = self.codebook.entries[codes].clone()
        if self.training:
            self.codebook.update(z.detach(), codes)
        return z + (entries - z).detach(), codes, F.mse_loss(z, entries)
