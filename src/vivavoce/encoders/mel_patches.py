"""A transformer over patches of a mel spectrogram, in pieces of ten seconds, each by itself: AudioMAE and its kin.

Source: Huang et al., arXiv:2207.06405 (facebookresearch/AudioMAE: ViT-B, patches of 16 x 16, Kaldi's 128 bands, fixed
positions in both directions); the mean of the last blocks is AudioLDM 2's (arXiv:2308.05734), the groups of
neighbouring patches SemantiCodec's (arXiv:2405.00233, section 3.2). EAT has its norms behind the sums
(cwx-worst-one/EAT), ATST patches as high as the spectrum and learned positions (Audio-WestlakeU/audiossl).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vivavoce.audio.kaldi import kaldi_fbank
from vivavoce.encoders.base import Encoder, Layer
from vivavoce.encoders.spectrum_trunk import SpectrumTrunk
from vivavoce.encoders.speech_transformer import (
    Block,
    SpeechTransformerConfig,
    feedforward_outputs,
    through_blocks,
)
from vivavoce.errors import RecipeError
from vivavoce.nn.streaming import zero_padding

MEAN, DEVIATION = -4.2677393, 4.5689974  # of AudioSet's log energies
HOP, BEYOND = 160, 240  # samples a mel frame begins after another, and reaches beyond the next one's beginning


class MelPatches(SpectrumTrunk):
    """Waveforms -> patches, those of a column of mel frames from the lowest band up: 50 a second as published.

    patch: how many bands and frames it has, one number for both or two. columns: how many attend to each other; what is
    longer is heard in such pieces, from the beginning on. A learned vector at their beginning is heard with them.
    average: the output is the mean of so many last blocks. stable: norms stand before attention and feed-forward, and
    one before that mean; otherwise behind them, and one before the first block. learned: positions are, not fixed. A
    column that has begun is filled with silence.
    """

    piece = None  # type: ignore[assignment]  # what it hears at once is bounded

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        mels: int = 128,
        patch: int | Sequence[int] = 16,
        columns: int = 64,
        average: int = 3,
        stable: bool = True,
        learned: bool = False,
    ):
        super().__init__()
        high, long = (patch, patch) if isinstance(patch, int) else patch
        if min(high, long) < 1 or mels % high or width % 4:
            raise RecipeError(f"mels {mels}, patch {patch}, width {width}: multiples of patch, at least 1, and of 4")
        if not 1 <= average <= layers or columns < 1:
            raise RecipeError(f"average {average}, columns {columns}: 1 to {layers} blocks, and at least one column")
        self.sample_rate, self.width, self.layers = 16000, width, layers
        self.mels, self.long, self.average, self.stable, self.summary_width = mels, long, average, stable, width
        self.bands, self.columns, self.local_width = mels // high, columns, high * long
        self.column = HOP * long  # samples
        self.frame_rate = self.sample_rate * self.bands / self.column
        config = SpeechTransformerConfig(
            width=width, layers=layers, heads=heads, hidden=hidden, stable=stable, epsilon=1e-6, position_groups=1
        )
        self.projection = nn.Linear(self.local_width, width)
        self.first = nn.Parameter(0.02 * torch.randn(width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(layers))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.places: Tensor
        if learned:
            self.places = nn.Parameter(0.02 * torch.randn(columns * self.bands, width))
        else:
            self.register_buffer("places", grid_positions(columns, self.bands, width), persistent=False)

    def frames(self, samples):
        return -(-samples // self.column) * self.bands

    def spectrum(self, wave: Tensor, counts: Tensor) -> Tensor:
        size = int(counts.max()) // self.bands if len(counts) else 0
        wave = F.pad(wave, (0, size * self.column + BEYOND - wave.shape[1]))
        mel = kaldi_fbank(wave, self.sample_rate, self.mels, taper="hanning", scale=1.0)[:, : size * self.long]
        return ((mel - MEAN) / (2 * DEVIATION)).to(self.projection.weight.dtype)

    def cut(self, mel: Tensor) -> Tensor:
        square = mel.reshape(len(mel), -1, self.long, self.bands, self.mels // self.bands)
        return square.transpose(2, 3).reshape(len(mel), -1, self.local_width)

    def embed(self, frames: Tensor) -> Tensor:
        return self.projection(frames)

    def context(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        size, rows = self.columns * self.bands, len(x)
        if x.shape[1] <= size:
            return super().context(x, counts, layer)
        pieces, whole = -(-x.shape[1] // size), x.shape[1]
        x = F.pad(x, (0, 0, 0, pieces * size - whole)).reshape(rows * pieces, size, -1)
        starts = size * torch.arange(pieces, device=x.device)
        y = super().context(x, (counts[:, None] - starts).clamp(0, size).flatten(), layer).unflatten(0, (rows, pieces))
        return (y.transpose(1, 2) if layer == "all" else y).flatten(-3, -2)[..., :whole, :]

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        at = torch.arange(x.shape[1], device=x.device) % len(self.places)
        return zero_padding(x, counts) + self.places[at].to(x)

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        y = self.with_first(x, counts) if layer is None else self._through(x, counts, layer)
        return y[..., 1:, :]

    def with_first(self, x: Tensor, counts: Tensor) -> Tensor:
        """As `attend`, with what becomes of the learned vector before it: [B, 1 + T, D]."""
        y = self._through(x, counts, "all")[:, -self.average :]
        return (self.norm(y) if self.stable else y).mean(1)

    def summary(self, x: Tensor, counts: Tensor) -> Tensor:
        return self.with_first(x, counts)[:, 0]

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        found = feedforward_outputs(self.blocks, lambda: self._through(self.place(x, counts), counts, None))
        return [each[:, 1:] for each in found]

    def _through(self, x: Tensor, counts: Tensor, layer: Layer) -> Tensor:
        x = torch.cat([self.first.expand(len(x), 1, -1), x], dim=1)
        return through_blocks(self.blocks, x if self.stable else self.norm(x), counts + 1, layer)


def grid_positions(columns: int, bands: int, width: int) -> Tensor:
    """Fixed positions [columns x bands, width] of patches: of the band in the first half, of the column in the second,
    each by sines and then cosines (the masked autoencoder of arXiv:2111.06377)."""
    rates = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    band, column = (torch.arange(size)[:, None] * rates for size in (bands, columns))
    of_band, of_column = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (band, column))
    return torch.cat([of_band.repeat(columns, 1), of_column.repeat_interleave(bands, dim=0)], dim=1)


class PatchGroups(Encoder):
    """The patches of `trunk`, each `bands` x `columns` neighbours side by side, column by column: fewer and wider ones.

    Columns that have begun are filled with silence.
    """

    def __init__(self, trunk: MelPatches, bands: int, columns: int):
        super().__init__()
        if min(bands, columns) < 1 or trunk.bands % bands or trunk.columns % columns:
            raise RecipeError(
                f"group [{bands}, {columns}]: numbers that divide {trunk.bands} bands and {trunk.columns} columns"
            )
        self.trunk, self.group = trunk, (bands, columns)
        self.sample_rate, self.width = trunk.sample_rate, trunk.width * bands * columns
        self.frame_rate = trunk.frame_rate / (bands * columns)

    def frames(self, samples):
        bands, columns = self.group
        return -(-samples // (self.trunk.column * columns)) * (self.trunk.bands // bands)

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        bands, columns = self.group
        whole = self.trunk.column * columns
        lengths = -(-lengths // whole) * whole
        wave = F.pad(wave, (0, max(0, int(lengths.max()) - wave.shape[1])))
        y = self.trunk(wave, lengths)
        grid = y.shape[1] // (columns * self.trunk.bands), columns, self.trunk.bands // bands, bands
        return y.unflatten(1, grid).transpose(2, 3).flatten(3).flatten(1, 2)
