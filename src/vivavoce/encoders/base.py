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
    outputs can be asked for (0: only the last); piece, around: signals longer than `piece` + `around` seconds are made
    into units in such pieces, with so much context on each side (`encoders.pieces`; None: whole, however long); apart:
    on the CPU, rows of a batch go through one by one, because there padding costs and batches save nothing.
    """

    sample_rate: int
    frame_rate: float
    width: int
    layers: int = 0
    piece: float | None = None
    around: float = 0.0
    apart: bool = False

    def frames(self, samples):
        """Number of frames of `samples` (int or integer tensor): exact."""
        raise NotImplementedError

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        """wave [B, samples], zero beyond lengths [B] -> frames [B, T, D], of any value beyond `frames(lengths)`."""
        raise NotImplementedError

    def sizes(self) -> dict[str, Any] | None:
        """Options of `build_encoder` that make this encoder with random weights; None where they are not known here."""
        return None

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
        counts = self.frames(lengths)
        if self.apart and len(batch) > 1 and batch.device.type == "cpu":
            values = self._apart(batch, lengths, counts, layer)
        else:
            values = self(batch, lengths, layer)
        most = int(counts.max()) if len(counts) else 0
        if values.dim() == 4:
            values = torch.stack([zero_padding(part[:, :most], counts) for part in values.unbind(1)], dim=1)
        else:
            values = zero_padding(values[:, :most], counts)
        return Features(values, counts, self.frame_rate)

    def _apart(self, batch: Tensor, lengths: Tensor, counts: Tensor, layer: Layer) -> Tensor:
        """As `forward`, each row for itself."""
        values: Tensor | None = None
        for row, (wave, length, count) in enumerate(zip(batch, lengths.tolist(), counts.tolist())):
            found = self(wave[None, :length], lengths[row : row + 1], layer)[0]
            if values is None:
                shape = list(found.shape)
                shape[-2] = int(counts.max())
                values = found.new_zeros(len(batch), *shape)
            values[row, ..., :count, :] = found[..., :count, :]
        assert values is not None
        return values

    def check_layer(self, layer: Layer) -> None:
        """Raise `RequestError` unless the encoder has this layer."""
        if layer is None or (layer == "all" and self.layers):
            return
        if isinstance(layer, int) and not isinstance(layer, bool) and self.layers and 0 <= layer <= self.layers:
            return
        having = f"has layers 0 to {self.layers}, or 'all'" if self.layers else "has no layers to choose from"
        raise RequestError(f"layer={layer!r}: this encoder {having}")


class Trunk(Encoder):
    """An encoder in two halves: local frames, each of a short piece of the waveform, and their context.

    Between the halves a frame can be masked, which is what self-supervised learning needs. local_width: C of the local
    frames. A subclass gives `local`, `embed` and `context`; the whole is one after the other.
    """

    local_width: int
    piece, around, apart = 50.0, 10.0, True

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """wave [B, samples], zero beyond lengths [B] -> local frames [B, T, C] and how many of each row count [B]."""
        raise NotImplementedError

    def local_norm(self, frames: Tensor) -> Tensor:
        """Local frames [B, T, C] as their targets and `embed` take them."""
        return frames

    def embed(self, frames: Tensor) -> Tensor:
        """Normed local frames [B, T, C] -> frames [B, T, D] that may be masked."""
        raise NotImplementedError

    def context(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        """Frames [B, T, D], of which counts [B] are valid -> [B, T, D] in context; `layer` as `features` has it."""
        return self.attend(self.place(x, counts), counts, layer)

    def place(self, x: Tensor, counts: Tensor) -> Tensor:
        """Frames [B, T, D] with their positions told, as the first block takes them: some may be left out then."""
        return x

    def attend(self, x: Tensor, counts: Tensor, layer: Layer = None) -> Tensor:
        """Placed frames [B, T, D], the first counts [B] of each row, through the blocks; as `context`."""
        raise NotImplementedError

    def attend_some(self, x: Tensor, counts: Tensor, at: Tensor) -> Tensor:
        """As `attend`, of frames that had the places at [B, T] before others were left out."""
        return self.attend(x, counts)

    def feedforwards(self, x: Tensor, counts: Tensor) -> list[Tensor]:
        """What the feed-forward part of every block adds to its frames, [B, T, D] each: data2vec's targets."""
        raise NotImplementedError(f"{type(self).__name__} has no feed-forward parts that can be had")

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        frames, counts = self.local(wave, lengths)
        return self.context(self.embed(self.local_norm(frames)), counts, layer)


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
