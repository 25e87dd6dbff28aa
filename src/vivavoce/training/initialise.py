"""Weights to begin with, measured on data: every convolution gives unit variance (LSUV, arXiv:1511.06422).

torch's default shrinks a signal by about sqrt(3) a layer. Through the twenty or more layers of a deep convolutional
codec without norms, what differs between two sounds is then a thousandth of what the biases say, and a training of some
thousand steps only learns the mean spectrum. Training of millions of steps does not need this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def unit_variance(model: nn.Module, run: Callable[[], Any], last: nn.Module | None = None, scale: float = 1.0) -> int:
    """Scale each convolution of `model` so that its output has standard deviation 1 while `run()` passes data through.

    One pass suffices: a layer is scaled when it is reached and hands on what it will give from then on. Biases become
    0. The layer `last` gets standard deviation `scale` instead, such as that of the waveform. Returns the number of
    layers scaled; layers that `run` does not reach, or that answer a constant, stay as they are.
    """
    layers = [module for module in model.modules() if is_convolution(module)]
    for layer in layers:
        if isinstance(layer.bias, Tensor):
            layer.bias.zero_()
    scaled: set[int] = set()

    def correct(layer: nn.Module, output: Tensor) -> Tensor:
        spread = output.float().std(correction=0) if output.numel() else output.new_zeros(())
        if id(layer) in scaled or not spread > 1e-8:
            return output
        scaled.add(id(layer))
        gain = (scale if layer is last else 1.0) / spread
        layer.weight.mul_(gain)  # type: ignore[operator]
        return output * gain

    with _watched(layers, correct):
        run()
    return len(scaled)


@contextmanager
def _watched(layers: list[nn.Module], correct: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """`correct(layer, output)` stands for the output of each layer's `step`, or of its call where it has no step."""
    handles = []
    for layer in layers:
        if hasattr(layer, "step"):

            def step(*given, layer=layer, plain=layer.step):
                y, after = plain(*given)
                return correct(layer, y), after

            layer.step = step  # type: ignore[assignment]
        else:
            handles.append(layer.register_forward_hook(lambda layer, _, output: correct(layer, output)))
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("step", None)
        for handle in handles:
            handle.remove()


def is_convolution(module: nn.Module) -> bool:
    """Whether a module has a convolution's kernel as its own parameter."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() >= 3
