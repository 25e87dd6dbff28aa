"""What every assembled system has, whatever its verbs."""

from typing import Any

import torch

from vivavoce.errors import RequestError
from vivavoce.schema import Recipe

VERBS = ("fill", "loglik", "features", "reply", "duplex", "duplex_rows", "resynth")


class MissingVerb(RequestError, AttributeError):
    """The model has no such verb, neither natively nor derived."""


class Model:
    """A system with its recipe. `verbs` says which verbs it has, each native or derived; the others are an error."""

    system: Any  # the network, an nn.Module

    def __init__(self, recipe: Recipe, system: Any):
        self.recipe, self.system = recipe, system.eval()
        self.name, self.sample_rate = recipe.system, recipe.sample_rate

    @property
    def verbs(self) -> dict[str, str]:
        """Verb -> native or derived."""
        return {}

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task of `reply` -> what its last turn may be: "audio", "text"."""
        return {}

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.system.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = (*self.system.parameters(), *self.system.buffers())  # cepstra and their clusters have no parameters
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Model":
        """Move all weights to `device`; those of the language model become `dtype`.

        What hears and what speaks (encoders, codecs) computes in float32: one hears its rounding. Raises `RequestError`
        for another dtype of a system that has no language model.
        """
        self.system.to(device=device)
        if dtype is not None:
            stage = getattr(self.system, "stage", None)
            if stage is None and dtype != torch.float32:
                raise RequestError(f"{self.name} has no language model: it computes in float32, not {dtype}")
            if stage is not None:
                stage.to(dtype=dtype)
        return self

    def save(self, directory: Any, dtype: torch.dtype = torch.float32) -> None:
        """Write a model directory that `vivavoce.load` takes; weights are stored in `dtype`."""
        from vivavoce.systems.checkpoint import save

        save(self, directory, dtype)

    def __getattr__(self, name: str) -> Any:
        if name in VERBS:
            raise MissingVerb(f"{self.name} has no verb '{name}'; it has {', '.join(self.verbs)}")
        raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
