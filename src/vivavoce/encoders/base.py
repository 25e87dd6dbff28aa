"""What every encoder is to its callers: waveforms in, frames with a rate out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vivavoce.audio.waveform import check_waveform
from vivavoce.errors import AudioError, RequestError
from vivavoce.nn.streaming import check_lengths, lengths_of, zero_padding

Layer = int | Literal["all"] | None


@dataclass
class Features:
    """Frames of an encoder: values [B, T, D] (all layers: [B, layers + 1, T, D]), zero beyond lengths [B]; frames
    per second."""

    values: Tensor
    lengths: Tensor
    frame_rate: float


class Encoder(nn.Module):
    """Base. A subclass gives `forward` and `frames`, and sets what is published:

    sample_rate in Hz of the waveforms; frame_rate in Hz; width D of the frames; layers: number of blocks whose
    outputs can be asked for (0: only the last).
    """

    sample_rate: int
    frame_rate: float
    width: int
    layers: int = 0

    def frames(self, samples):
        """Number of frames of `samples` (int or integer tensor): exact."""
        raise NotImplementedError

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        """wave [B, samples], zero beyond lengths [B] -> frames [B, T, D], of any value beyond `frames(lengths)`."""
        raise NotImplementedError

    @torch.no_grad()
    def features(self, wave: Any, lengths: Tensor | None = None, layer: Layer = None) -> Features:
        """Frames of waveforms, without gradients; a row's are the same in any batch.

        wave: tensor [B, 1, samples] float at `sample_rate`, padded at the right beyond lengths [B]; or a sequence of
        waveforms of their own lengths (`Audio`, [samples] or [1, samples]). layer: None for the output; 0 for the
        input of the first block, k for the output of block k, before any norm that follows the last; "all" for all
        these. Raises `AudioError`, or `RequestError` for a layer that is not there.
        """
        self.check_layer(layer)
        batch, lengths = as_batch(wave, lengths, self.sample_rate)
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), batch.device)
        batch, lengths = batch.to(device), lengths.to(device)
        values = self(batch, lengths, layer)
        counts = self.frames(lengths)
        most = int(counts.max()) if len(counts) else 0
        if values.dim() == 4:
            values = torch.stack([zero_padding(part[:, :most], counts) for part in values.unbind(1)], dim=1)
        else:
            values = zero_padding(values[:, :most], counts)
        return Features(values, counts, self.frame_rate)

    def check_layer(self, layer: Layer) -> None:
        """Raise `RequestError` unless the encoder has this layer."""
        if layer is None or (layer == "all" and self.layers):
            return
        if isinstance(layer, int) and not isinstance(layer, bool) and self.layers and 0 <= layer <= self.layers:
            return
        having = f"has layers 0 to {self.layers}, or 'all'" if self.layers else "has no layers to choose from"
        raise RequestError(f"layer={layer!r}: this encoder {having}")


def as_batch(wave: Any, lengths: Tensor | None, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Waveforms as `Encoder.features` takes them -> float32 [B, samples], zero beyond lengths, and lengths [B]."""
    if isinstance(wave, Tensor):
        if wave.dim() != 3 or wave.shape[1] != 1:
            raise AudioError(f"waveform {tuple(wave.shape)}: [batch, 1, samples] expected (mix channels down first)")
        if lengths is not None:
            check_lengths(lengths, len(wave), wave.shape[2])
        lengths = lengths_of(wave[:, 0], lengths)
        batch = zero_padding(wave[:, 0].float(), lengths)
        if not bool(batch.isfinite().all()):
            row = int((~batch.isfinite()).any(1).nonzero()[0])
            raise AudioError(f"waveform {row} of the batch is not finite: repair or leave out the recording")
        return batch, lengths
    if isinstance(wave, Sequence) and not isinstance(wave, str | bytes):
        if lengths is not None:
            raise RequestError("a list of waveforms has its own lengths: leave `lengths` out")
        rows = [
            check_waveform(item, sample_rate, where=f"waveform {i}", channels=1, shortest=0)[0]
            for i, item in enumerate(wave)
        ]
        sizes = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        batch = torch.zeros(len(rows), int(sizes.max()) if rows else 0)
        for i, row in enumerate(rows):
            batch[i, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
        return batch, sizes
    raise AudioError(f"{type(wave).__name__} given, a tensor [batch, 1, samples] or a list of waveforms expected")
