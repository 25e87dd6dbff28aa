"""Encoders whose local frames are cut from a mel spectrogram, which learning by views alters before."""

from torch import Tensor

from vivavoce.encoders.base import Trunk
from vivavoce.nn.streaming import zero_padding


class SpectrumTrunk(Trunk):
    """Base. long, bands: of a column, its mel frames and the local frames that they are cut into; mels: bands of the
    spectrum; summary_width: W of the one vector that stands for a row."""

    mels: int
    long: int
    bands: int = 1
    summary_width: int

    def local(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        counts = self.frames(lengths)
        return zero_padding(self.cut(self.spectrum(wave, counts)), counts), counts

    def spectrum(self, wave: Tensor, counts: Tensor) -> Tensor:
        """wave [B, samples] -> mel frames [B, T, mels] of whole columns, as many as counts [B] local frames need."""
        raise NotImplementedError

    def cut(self, mel: Tensor) -> Tensor:
        """Mel frames [B, T, mels] of whole columns -> local frames [B, columns x bands, C]."""
        raise NotImplementedError

    def summary(self, x: Tensor, counts: Tensor) -> Tensor:
        """Placed frames [B, T, D], the first counts [B] of each row -> one vector of each row, [B, W]."""
        raise NotImplementedError

    def utterances(self, wave: Tensor, lengths: Tensor) -> Tensor:
        """wave [B, samples], zero beyond lengths [B] -> one vector of each row, [B, W]."""
        frames, counts = self.local(wave, lengths)
        return self.summary(self.place(self.embed(self.local_norm(frames)), counts), counts)
