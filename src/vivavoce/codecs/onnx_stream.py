"""A codec that `vivavoce convert --to onnx` wrote, streamed by onnxruntime, as another program would do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vivavoce.errors import CheckpointError, RequestError

FORMAT, ABOUT = 1, "codec.json"


class OnnxCodec:
    """One signal at a time: `encode`, `decode` for wholes; `Stream` for its steps.

    Raises `CheckpointError` for a folder that is not one of a codec.
    """

    def __init__(self, folder: str | Path, threads: int = 1):
        import onnxruntime

        place = Path(folder)
        try:
            self.about: dict[str, Any] = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            if self.about["format"] != FORMAT:
                raise CheckpointError(f"{place / ABOUT}: format {self.about['format']}; this version reads {FORMAT}")
            self.sample_rate, self.channels, self.hop = (self.about[n] for n in ("sample_rate", "channels", "hop"))
            self.encoder_begin, self.decoder_begin = (self.about[n]["begin"] for n in ("encoder", "decoder"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{place}: no codec as ONNX graphs: {error!r}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self.graphs = {
            name: onnxruntime.InferenceSession(str(place / f"{name}.onnx"), options, ["CPUExecutionProvider"])
            for name in ("encoder-begin", "encoder-step", "decoder-begin", "decoder-step")
        }

    def encode(self, wave: np.ndarray) -> np.ndarray:
        """Waveform [1, C, n] float32 -> codes [1, K, ceil(n / hop)] int64; zeros fill the last frame. Raises
        `RequestError` for one that is shorter than `encoder_begin`."""
        wave = np.pad(wave, ((0, 0), (0, 0), (0, -wave.shape[2] % self.hop)))
        stream = Stream(self, "encoder")
        return np.concatenate([codes for codes in stream.over(wave) if codes is not None], axis=2)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes [1, K, T] int64 -> waveform [1, C, T x hop]; T is `decoder_begin` at least."""
        stream = Stream(self, "decoder")
        return np.concatenate([wave for wave in stream.over(codes) if wave is not None], axis=2)


class Stream:
    """The state of one signal in the `encoder` or the `decoder`."""

    def __init__(self, codec: OnnxCodec, stack: str):
        self.codec, self.stack = codec, stack
        self.given = "wave" if stack == "encoder" else "codes"
        self.begin = codec.about[stack]["begin"]
        self.size = codec.hop if stack == "encoder" else 1
        self.state: dict[str, np.ndarray] | None = None

    def step(self, x: np.ndarray) -> np.ndarray:
        """The first `begin` samples or frames [1, …, begin], then `hop` samples or a frame each time -> what they
        give."""
        wanted = self.begin if self.state is None else self.size
        if x.shape[2] != wanted:
            raise RequestError(f"{x.shape[2]} where {wanted} are expected")
        graph = self.codec.graphs[f"{self.stack}-{'begin' if self.state is None else 'step'}"]
        there = {each.name for each in graph.get_inputs()}
        feed = {self.given: np.ascontiguousarray(x), **(self.state or {})}
        found = graph.run(None, {name: value for name, value in feed.items() if name in there})
        names = (f"state.{name}" for name in self.codec.about[self.stack]["states"])
        self.state = dict(zip(names, found[1:], strict=True))
        return found[0]

    def over(self, x: np.ndarray) -> list[np.ndarray]:
        """All of a signal [1, …, n] in steps."""
        if x.shape[2] < self.begin:
            raise RequestError(f"{x.shape[2]}: the {self.stack} begins with {self.begin}; pad a shorter signal")
        ends = range(self.begin, x.shape[2] + 1, self.size)
        return [self.step(x[..., end - (self.begin if end == self.begin else self.size) : end]) for end in ends]
