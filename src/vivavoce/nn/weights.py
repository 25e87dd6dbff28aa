"""Weights into modules, strictly: what does not fit is named."""

from collections.abc import Mapping

from torch import Tensor, nn

from vivavoce.errors import CheckpointError


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Fill `module` with `tensors`; every name and shape must agree, else `CheckpointError` names the first few."""
    own = module.state_dict()
    problems = [f"'{key}' is missing" for key in own if key not in tensors]
    problems += [f"'{key}' is not in the model" for key in tensors if key not in own]
    problems += [
        f"'{key}' is {tuple(tensors[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(tensors))
