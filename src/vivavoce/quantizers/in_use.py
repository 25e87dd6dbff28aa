"""Which of a quantizer's codebooks are in use: the first of them, a number that may be set."""

from vivavoce.quantizers.base import Quantizer


class CodebooksInUse:
    """What has a `quantizer`, and uses `_codebooks` of its codebooks: at first all."""

    quantizer: Quantizer
    _codebooks: int

    @property
    def codebooks(self) -> int:
        """Codebooks in use."""
        return self._codebooks

    @codebooks.setter
    def codebooks(self, count: int) -> None:
        self._codebooks = self.quantizer.levels_used(count)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of each codebook in use."""
        return self.quantizer.codebook_sizes[: self._codebooks]

    @property
    def codebook_size(self) -> int:
        """Entries of the largest codebook in use."""
        return max(self.codebook_sizes)
