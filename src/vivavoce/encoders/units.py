"""Discrete units of speech: frames of an encoder, each replaced by the number of its k-means cluster.

As GSLM (arXiv:2102.01192) and HuBERT (arXiv:2106.07447) make them.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vivavoce.encoders.base import Encoder, as_batch
from vivavoce.encoders.int8 import use_int8
from vivavoce.encoders.pieces import heard_in_pieces, sizes
from vivavoce.errors import CheckpointError, DataError, RequestError
from vivavoce.nn.streaming import lengths_of, take_frames, valid
from vivavoce.nn.weights import load_module, read_safetensors, written_whole
from vivavoce.pretrained import read_json
from vivavoce.quantizers import minibatch_kmeans, nearest
from vivavoce.quantizers.nearest import ties

CONFIG, CENTERS, WEIGHTS = "units.json", "units.safetensors", "encoder.safetensors"


@dataclass
class Units:
    """Runs of equal units: units [B, N] int64, durations [B, N] in frames (0 beyond lengths), lengths [B] in runs."""

    units: Tensor
    durations: Tensor
    lengths: Tensor


class UnitTokenizer(nn.Module):
    """Waveform -> one code a frame: an encoder's frames at `layer` and the `centers` [clusters, D] of their k-means.

    Signals that are longer than a minute or so are heard in pieces (`encoders.pieces`): memory does not grow with them.
    There is no way back to a waveform but a vocoder (`vivavoce.vocoders.UnitHiFiGAN`). `config` is what
    `build_encoder` makes this encoder of; it is needed for saving only. scale: [D], factors of the frames' dimensions
    before they are compared with the centers (None: none), for frames whose dimensions differ in size. int8: parts of
    the encoder that compute with 8-bit values on the CPU (`use_int8`): faster, and some units differ.
    """

    codebooks = 1
    centers: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: Encoder,
        centers: Tensor,
        layer: int | None = None,
        config: Mapping[str, Any] | None = None,
        scale: Tensor | None = None,
        int8: str | None = None,
    ):
        super().__init__()
        encoder.check_layer(layer)
        if int8 is not None:
            use_int8(encoder, int8)
        self.int8 = int8
        if centers.dim() != 2 or centers.shape[1] != encoder.width:
            raise CheckpointError(f"centers {tuple(centers.shape)} for an encoder of width {encoder.width}")
        self.encoder, self.layer = encoder, layer
        self.config = dict(config) if config is not None else None
        self.register_buffer("centers", centers.float().contiguous())
        self.register_buffer("scale", torch.ones(encoder.width) if scale is None else scale.float())

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        waves: Iterable[Any],
        clusters: int,
        layer: int | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        most_frames: int = 2_000_000,
        standardize: bool = False,
        points: Callable[[Tensor], Tensor] | None = None,
        **kmeans: Any,
    ) -> "UnitTokenizer":
        """Train the clusters on waveforms (each `Audio`, [samples] or [1, samples]), heard one after the other.

        standardize: bring every dimension of the frames to the same variance first. points: what of a signal's frames
        [T, D] is clustered, [N, D] (None: each of them). Beyond `most_frames` points a uniform random sample of that
        many is kept. Further options are those of `minibatch_kmeans`. Raises `DataError` when the corpus has fewer
        points than clusters.
        """
        frames = _Reservoir(most_frames, encoder.width, seed)
        for wave in waves:
            found = encoder.features([wave], layer=layer)
            mine = found.values[0, : int(found.lengths[0])].float().cpu()
            frames.add(mine if points is None else points(mine))
        rows = frames.rows()
        if len(rows) < clusters:
            raise DataError(f"{len(rows)} frames for {clusters} units: give a larger corpus or fewer units")
        scale = 1 / rows.std(0).clamp(min=1e-6) if standardize else None
        rows = rows if scale is None else rows * scale
        centers = minibatch_kmeans(rows, clusters, seed=seed, **kmeans).centers
        return cls(encoder, centers, layer, config, scale)

    def _apply(self, fn, recurse=True):
        """The centers stay float32 when the model around is cast: units must not depend on its precision."""
        exact = {"centers": self.centers, "scale": self.scale}
        super()._apply(fn, recurse)
        for name, own in exact.items():
            if getattr(self, name).dtype != own.dtype:
                setattr(self, name, own.to(getattr(self, name).device))
        return self

    def nearest(self, frames: Tensor) -> Tensor:
        """Units [B, T] of frames [B, T, D]."""
        return nearest(frames.flatten(0, 1) * self.scale, self.centers).view(frames.shape[:2])

    def center(self, units: Tensor) -> Tensor:
        """Units [...] -> their centers as frames [..., D]."""
        return self.centers[units] / self.scale

    def label(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Units [B, T] of whole signals' frames [B, T, D], of which lengths [B] are valid."""
        return self.nearest(frames)

    def points(self, frames: Tensor) -> Tensor:
        """What is compared with the centers of one signal's frames [T, D]: [N, D]."""
        return frames

    def take(self, centers: Tensor, scale: Tensor) -> None:
        """Have these centers [clusters, D] and this scale [D] from now on."""
        self.centers.copy_(centers)
        self.scale.copy_(scale)

    @property
    def sample_rate(self) -> int:
        """Hz of the waveforms."""
        return self.encoder.sample_rate

    @property
    def frame_rate(self) -> float:
        """Codes a second."""
        return self.encoder.frame_rate

    @property
    def codebook_size(self) -> int:
        """Number of units."""
        return len(self.centers)

    def frames(self, samples):
        """Codes of `samples` (int or integer tensor): exact."""
        return self.encoder.frames(samples)

    @torch.no_grad()
    def encode(self, wave: Any, lengths: Tensor | None = None) -> Tensor:
        """Waveforms, as `Encoder.features` takes them -> codes [B, 1, T] int64, 0 beyond `frames(lengths)`."""
        return self._codes(wave, lengths)[0][:, None]

    @torch.no_grad()
    def units(self, wave: Any, lengths: Tensor | None = None) -> Units:
        """Waveforms -> their units, repeated ones joined, with how many frames each lasts."""
        return deduplicate(*self._codes(wave, lengths))

    def _codes(self, wave: Any, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, lengths = as_batch(wave, lengths, self.sample_rate)
        counts = self.frames(lengths)
        if self.encoder.piece is None or int(counts.max() if len(counts) else 0) <= sum(sizes(self.encoder)):
            frames = self.encoder.features(batch[:, None], lengths, self.layer)
            codes = self.label(frames.values, frames.lengths)
            return codes * valid(frames.lengths, codes.shape[1]), frames.lengths
        rows = [heard_in_pieces(self.encoder, row[:length], self.heard) for row, length in zip(batch, lengths.tolist())]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), counts.to(rows[0].device)

    @torch.no_grad()
    def heard(self, wave: Tensor) -> Tensor:
        """Codes [T] of one signal [samples] that the encoder hears whole."""
        return self.label(self.encoder.features(wave[None, None], None, self.layer).values)[0]

    def ties(self, wave: Any, lengths: Tensor | None = None) -> Tensor:
        """Where rounding may change a code: bool [B, 1, T]."""
        return ties(self.encoder.features(wave, lengths, self.layer).values * self.scale, self.centers)[:, None]

    def save(self, directory: str | Path) -> None:
        """Write the centers, what the encoder is, and its weights if it has any."""
        from safetensors.torch import save_file

        if self.config is None:
            raise RequestError("an encoder of unknown making cannot be saved: give UnitTokenizer its `config`")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = dict(self.encoder.state_dict())
        config = self.config
        if weights:
            with written_whole(directory / WEIGHTS) as part:
                save_file({key: value.contiguous() for key, value in weights.items()}, part)
            config = rebuilding(self.encoder, config)
        with written_whole(directory / CENTERS) as part:
            save_file(self.tensors(), part)
        about = {"kind": "units", "encoder": config, "layer": self.layer, **self.about()}
        text = json.dumps(about | ({"int8": self.int8} if self.int8 else {}), indent=2)
        with written_whole(directory / CONFIG) as part:
            part.write_text(text + "\n")

    def about(self) -> dict[str, Any]:
        """What a subclass must be told beside encoder and layer."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What is saved beside the encoder's weights."""
        return {"centers": self.centers, "scale": self.scale}

    @classmethod
    def load(cls, directory: str | Path) -> "UnitTokenizer":
        """Read what `save` wrote; raises `CheckpointError` for a directory that is not that."""
        from vivavoce.encoders.registry import build_encoder

        directory = Path(directory)
        try:
            config = read_json(directory / CONFIG)
            tensors = read_safetensors(directory / CENTERS)
            centers = tensors["centers"]
            encoder = build_encoder(config["encoder"])
            if (directory / WEIGHTS).is_file():
                load_module(encoder, read_safetensors(directory / WEIGHTS), str(directory / WEIGHTS))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{directory} is no directory of units: {str(error).splitlines()[0]}") from error
        about = config["layer"], config["encoder"], tensors.get("scale"), config.get("int8")
        if "segments" in config:
            from vivavoce.encoders.segment_units import SegmentUnits

            if "groups" not in tensors:
                raise CheckpointError(f"{directory / CENTERS} has no groups, though {CONFIG} names segments")
            return SegmentUnits(encoder.eval(), centers, tensors["groups"], *about, cut=config["segments"])
        return cls(encoder.eval(), centers, *about)


def deduplicate(codes: Tensor, lengths: Tensor | None = None) -> Units:
    """Join runs of equal codes [B, T]: the inverse of `expand`."""
    lengths = lengths_of(codes, lengths)
    inside = valid(lengths, codes.shape[1])
    starts = inside.clone()
    starts[:, 1:] &= codes[:, 1:] != codes[:, :-1]
    counts = starts.sum(1)
    size = int(counts.max()) if len(counts) else 0
    run = starts.long().cumsum(1) - 1
    durations = codes.new_zeros(len(codes), size + 1)
    durations.scatter_add_(1, torch.where(inside, run, size), inside.long())
    units = codes.new_zeros(len(codes), size + 1)
    units.scatter_(1, torch.where(inside, run, size), codes)
    keep = valid(counts, size)
    return Units(units[:, :size] * keep, durations[:, :size] * keep, counts)


def expand(units: Tensor, durations: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Repeat units [B, N, ...] for their durations [B, N]: frames [B, T, ...] and their lengths [B]."""
    lengths = lengths_of(units, lengths)
    durations = durations * valid(lengths, units.shape[1])
    ends = durations.cumsum(1)
    totals = durations.sum(1)
    size = int(totals.max()) if len(totals) else 0
    if size == 0:
        return units[:, :0], totals
    at = torch.arange(size, device=units.device)[None].expand(len(units), -1).contiguous()
    index = torch.searchsorted(ends.contiguous(), at, right=True).clamp(max=units.shape[1] - 1)
    frames = take_frames(units, index)
    inside = valid(totals, size).view(*frames.shape[:2], *[1] * (frames.dim() - 2))
    return torch.where(inside, frames, torch.zeros((), dtype=frames.dtype, device=frames.device)), totals


def rebuilding(encoder: Encoder, config: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's config without its source, so that loading needs neither network nor the original directory."""
    sizes = encoder.sizes()
    return dict(config) if sizes is None else {"kind": config["kind"], **sizes}


class _Reservoir:
    """A uniform sample of at most `size` of the rows seen, in bounded memory."""

    def __init__(self, size: int, width: int, seed: int):
        self.size, self.width, self.seen = size, width, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.parts: list[Tensor] = []
        self.kept: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        room = max(self.size - self.seen, 0)
        self.parts.append(rows[:room])
        self.seen += min(room, len(rows))
        rest = rows[room:]
        if not len(rest):
            return
        kept = self.rows()
        ages = self.seen + 1 + torch.arange(len(rest))
        places = (torch.rand(len(rest), generator=self.generator, dtype=torch.float64) * ages).long()
        for place, row in zip(places.tolist(), rest):
            if place < self.size:
                kept[place] = row
        self.seen += len(rest)

    def rows(self) -> Tensor:
        if self.kept is None or self.parts:
            earlier = [] if self.kept is None else [self.kept]
            self.kept = torch.cat([torch.zeros(0, self.width), *earlier, *self.parts])
            self.parts = []
        return self.kept
