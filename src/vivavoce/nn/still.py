"""Modules with parts that do not learn and must not behave as if they did: no dropout, no moving averages."""

from typing import Any


class KeepsStill:
    """Before a module's other bases: its attributes named in `still` stay in evaluation mode."""

    still: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Any:
        """As torch.nn.Module's, of all other parts."""
        super().train(mode)  # type: ignore[misc]
        for name in self.still:
            getattr(self, name).eval()
        return self
