"""Silero VAD's network for 16 kHz, with the weights of its published ONNX file: many windows at once.

It is small (0.7 million multiplications a window), so that a runtime's calls cost more than its arithmetic: here each
layer is one matrix product over all rows. The architecture is the graph of the file (silero-vad 6, MIT): magnitudes of
a Fourier transform, four convolutions, one LSTM cell, one logistic unit.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("silero_vad_16k.onnx")
STRIDES = (1, 2, 2, 1)  # of the four convolutions, each with a kernel of 3
BINS, HOP, EDGE, WIDTH = 129, 128, 64, 128


class Silero:
    """`encode` what is heard, all windows at once; then `decide`, window after window, by what was before: hidden
    [N, 2, 128] is the output and the cell of the LSTM."""

    def __init__(self) -> None:
        import torch

        weights = {name: torch.from_numpy(value.copy()) for name, value in initializers(FILE).items()}
        # Every matrix [in, out]: MKL takes them sooner that way, and two dimensions sooner than three.
        self._basis = weights["model.stft.forward_basis_buffer"][:, 0].T.contiguous()  # real parts, then imaginary
        names = [f"model.encoder.{at}.reparam_conv" for at in range(len(STRIDES))]
        self._convolutions = [
            # a position's three inputs lie one behind the other
            (weights[f"{name}.weight"].permute(2, 1, 0).flatten(0, 1).contiguous(), weights[f"{name}.bias"], stride)
            for name, stride in zip(names, STRIDES)
        ]
        cell = "model.decoder.rnn"
        self._cell = torch.cat([weights[f"{cell}.weight_ih"], weights[f"{cell}.weight_hh"]], 1).T.contiguous()
        self._cell_bias = weights[f"{cell}.bias_ih"] + weights[f"{cell}.bias_hh"]
        self._out = weights["model.decoder.decoder.2.weight"][0]
        self._out_bias = weights["model.decoder.decoder.2.bias"]

    def encode(self, heard: np.ndarray) -> np.ndarray:
        """Windows of 512 samples with the 64 before them [N, 576] -> [N, 128]; they do not depend on each other."""
        import torch
        from torch.nn.functional import pad

        with torch.inference_mode():
            samples = torch.from_numpy(np.ascontiguousarray(heard, np.float32))
            mirrored = samples[:, -EDGE - 1 : -1].flip(1)
            frames = torch.cat([samples, mirrored], 1).unfold(1, 2 * HOP, HOP)
            spectrum = frames.reshape(-1, 2 * HOP) @ self._basis
            row = torch.sqrt(spectrum[:, :BINS].square() + spectrum[:, BINS:].square())
            row = row.reshape(len(samples), -1, BINS)
            for weight, bias, stride in self._convolutions:
                windows = pad(row, (0, 0, 1, 1)).unfold(1, 3, stride).transpose(2, 3)
                row = torch.relu(torch.addmm(bias, windows.reshape(-1, len(weight)), weight))
                row = row.reshape(len(samples), -1, len(bias))
            return row[:, 0].numpy()

    def decide(self, encoded: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next window of each row [N, 128] and hidden [N, 2, 128] -> probabilities of speech [N], hidden."""
        import torch

        with torch.inference_mode():
            before = torch.from_numpy(np.ascontiguousarray(hidden, np.float32))
            row = torch.cat([torch.from_numpy(np.ascontiguousarray(encoded)), before[:, 0]], 1)
            enter, forget, value, leave = torch.addmm(self._cell_bias, row, self._cell).chunk(4, 1)
            cell = torch.sigmoid(forget) * before[:, 1] + torch.sigmoid(enter) * torch.tanh(value)
            said = torch.sigmoid(leave) * torch.tanh(cell)
            probability = torch.sigmoid(torch.addmm(self._out_bias, torch.relu(said), self._out))[:, 0]
            return probability.numpy(), torch.stack([said, cell], 1).numpy()


@cache
def silero() -> Silero:
    """The one network of this process: it holds no state of a stream."""
    return Silero()


def initializers(path: Path) -> dict[str, np.ndarray]:
    """The named float32 constants of an ONNX file: fields of Protocol Buffers, as onnx.proto numbers them (a model's
    graph is 7, a graph's initializer 5; of a tensor, 1 are the dimensions, 8 the name, 9 the bytes)."""
    graph = next(value for number, value in _fields(path.read_bytes()) if number == 7)
    found = {}
    for number, tensor in _fields(graph):
        if number == 5:
            parts = list(_fields(tensor))
            shape = [size for part, sizes in parts if part == 1 for size in _integers(sizes)]
            name = next(bytes(value).decode() for part, value in parts if part == 8)
            found[name] = np.frombuffer(next(value for part, value in parts if part == 9), "<f4").reshape(shape)
    return found


def _fields(data: Any) -> list[tuple[int, Any]]:
    """(number, value) of each field of a message: integers, or the bytes of everything else."""
    data, at, found = memoryview(data), 0, []
    while at < len(data):
        key, at = _integer(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _integer(data, at)
            found.append((key >> 3, value))
            continue
        size, at = _integer(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        found.append((key >> 3, data[at : at + size]))
        at += size
    return found


def _integers(value: Any) -> list[int]:
    """A repeated integer: one, or several packed into bytes."""
    if isinstance(value, int):
        return [value]
    at, found = 0, []
    while at < len(value):
        one, at = _integer(value, at)
        found.append(one)
    return found


def _integer(data: Any, at: int) -> tuple[int, int]:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at
