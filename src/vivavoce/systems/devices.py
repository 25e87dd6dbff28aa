"""Where a model computes: the device and type of numbers by their names, and how many threads."""

from typing import Any

import torch

from vivavoce.errors import RequestError

DTYPES = ("float32", "bfloat16", "float16")


def placed(device: str = "auto", dtype: str | None = None) -> dict[str, Any]:
    """The `device=` and `dtype=` arguments of `vivavoce.load`; "auto" is cuda, then mps, then cpu.

    Raises `RequestError` for a device that this machine does not have and for an unknown name.
    """
    if dtype is not None and dtype not in DTYPES:
        raise RequestError(f"--dtype {dtype}: there are {', '.join(DTYPES)}")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    kind = device.split(":")[0]
    if kind not in there:
        raise RequestError(f"--device {device}: no such device; there are auto, {', '.join(there)}")
    if not there[kind]:
        raise RequestError(f"--device {device}: this machine has none that torch can use; take --device cpu")
    return {"device": device, "dtype": None if dtype is None else getattr(torch, dtype)}


def use_few_threads(model: Any) -> None:
    """One thread for a small model: its frames are so small that a second thread costs more than it brings."""
    weights = getattr(model, "parameters", None)
    if isinstance(weights, int) and weights < 50e6:
        torch.set_num_threads(1)
