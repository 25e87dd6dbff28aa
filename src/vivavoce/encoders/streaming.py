"""A streaming module over waveforms, such as `CausalMelEncoder`, behind the encoders' interface."""

from torch import Tensor

from vivavoce.encoders.base import Encoder, Layer
from vivavoce.nn.streaming import Streaming


class StreamingEncoder(Encoder):
    """`module` maps [B, samples, 1] to frames; it remains at `.module` for those who stream."""

    def __init__(self, module: Streaming, sample_rate: int):
        super().__init__()
        self.module, self.sample_rate = module, sample_rate
        self.width = module.width
        self.frame_rate = float(sample_rate / module.hop)

    def frames(self, samples):
        return self.module.frames(samples)

    def forward(self, wave: Tensor, lengths: Tensor, layer: Layer = None) -> Tensor:
        return self.module(wave[..., None], lengths)
