"""Floating-point operations: those of a model's products as they are computed, and how many a machine does a second.

    with FlopCount() as count:
        loss = model(batch)
        loss.backward()
    count.total / (seconds * peak("cpu"))       # MFU, model flops utilisation (PaLM, arXiv:2204.02311, appendix B)

A multiply and an add are two. Products of matrices, convolutions, attention and recurrent layers count, forward and
backward; sums, activations and norms do not. Attention counts the pairs that its rule allows: half of all for a causal
one. What a layer computes again in the backward pass (gradient checkpointing) is no work of the model's: it is left
out.
"""

import time
from collections.abc import Callable
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn")


class FlopCount(TorchDispatchMode):
    """Counts what is computed while it is entered, in `total`. Results are the same to the bit."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count."""
        kwargs = kwargs or {}
        count = _counter(func)
        if count is None and func is not torch.ops.prim.device.default:
            with self:  # without gradients, operations that are made of others come as they are
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if count is not None and not _again():
            self.total += int(count(args, kwargs, out))
        return out


def _again() -> bool:
    """Whether this is a forward pass inside a backward one: there, gradients are recorded only for computing again."""
    return torch.is_grad_enabled() and torch._C._current_autograd_node() is not None


@cache
def _counter(func: Any) -> Callable[[Any, Any, Any], float] | None:
    """What counts an operation, by its arguments and result; None for those that are no products."""
    name = func._schema.name.removeprefix("aten::")
    forward = name.removesuffix("_backward")
    times = 1 if forward == name else 2  # products by two gradients
    if forward in _ATTENTION:
        return lambda args, kwargs, out: times * _attention(_named(func, args, kwargs))
    if forward in _RECURRENT:
        return lambda args, kwargs, out: times * _recurrent(_named(func, args, kwargs))
    known = flop_registry.get(func._overloadpacket)
    if known is None:
        return None
    return lambda args, kwargs, out: known(*args, **kwargs, out_val=out)


def _named(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """An operation's arguments by name."""
    return {**dict(zip((each.name for each in func._schema.arguments), args)), **kwargs}


def _attention(given: dict[str, Any]) -> float:
    """Two products over the pairs of queries and keys that see each other."""
    query, key, value = given["query"], given["key"], given["value"]
    queries, keys = query.shape[-2], key.shape[-2]
    pairs = float(queries * keys)
    mask = given.get("attn_mask", given.get("attn_bias"))
    if given.get("is_causal"):
        short = min(queries, keys)
        pairs = short * (short + 1) / 2 + (queries - short) * keys
    elif mask is not None:
        pairs *= float((mask if mask.dtype == torch.bool else mask > -torch.inf).double().mean())
    return 2 * prod(query.shape[:-2]) * pairs * (query.shape[-1] + value.shape[-1])


def _recurrent(given: dict[str, Any]) -> float:
    """Every frame is multiplied by all matrices."""
    frames = given["input"].shape[0] * given["input"].shape[1]
    weights = given.get("weight") or [value for name, value in given.items() if name.startswith("weight")]
    return 2 * frames * sum(each.numel() for each in weights if isinstance(each, Tensor) and each.dim() == 2)


def peak(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, again: bool = False) -> float:
    """Flops a second of a large product of matrices, the best of several: what a machine does at most with its present
    number of threads. Measured once a process, in a tenth of a second; or again, where it was busy then: the most is
    kept."""
    key = str(device), dtype, torch.get_num_threads()
    if again or key not in _PEAKS:
        _PEAKS[key] = max(_PEAKS.get(key, 0.0), _measured(*key))
    return _PEAKS[key]


_PEAKS: dict[tuple[str, torch.dtype, int], float] = {}


def _measured(device: str, dtype: torch.dtype, threads: int) -> float:
    cuda = device.startswith("cuda")
    size = 8192 if cuda else 1024
    with torch.inference_mode():
        one, other = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        best, began, runs = float("inf"), time.perf_counter(), 0
        while runs < 3 or time.perf_counter() - began < 0.1:
            start = time.perf_counter()
            torch.mm(one, other)
            if cuda:
                torch.cuda.synchronize(device)
            best, runs = min(best, time.perf_counter() - start), runs + 1
    return 2 * size**3 / best
