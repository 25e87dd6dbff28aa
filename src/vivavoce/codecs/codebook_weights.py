"""Codebooks of moving averages in published formats: EnCodec's entries beside the averages, Mimi's averages alone."""

from typing import Literal

import torch
from torch import Tensor

from vivavoce.errors import CheckpointError
from vivavoce.nn.pairs import Published
from vivavoce.quantizers.codebook import Codebook

SUMS = ("embed_sum", "embedding_sum")


@torch.no_grad()
def read_codebook(book: Codebook, source: Published, stem: str) -> None:
    """Fill a codebook from what stands under `stem`: averages, or entries and their usage. Where the averages beside
    the entries give just these, they are kept too: training goes on with them."""
    shape = tuple(book.embedding_sum.shape)
    sums = next((f"{stem}.{name}" for name in SUMS if source.has(f"{stem}.{name}")), None)
    if sums is not None:
        book.embedding_sum.copy_(_fitting(source, sums, shape))
        book.cluster_usage.copy_(_fitting(source, f"{stem}.cluster_usage", shape[:1]))
        book.initialized.fill_(1)
        return
    entries = _fitting(source, f"{stem}.embed", shape)
    book.load(entries, _fitting(source, f"{stem}.cluster_size", shape[:1]))
    if source.has(f"{stem}.embed_avg"):
        made, average = book.embedding_sum.clone(), source.take(f"{stem}.embed_avg")
        if average.shape == made.shape:
            book.embedding_sum.copy_(average)
            if not torch.equal(book.embedding, entries):
                book.embedding_sum.copy_(made)


def theirs_of_codebook(book: Codebook, stem: str, kept: Literal["entries", "sums"]) -> dict[str, Tensor]:
    """A codebook's tensors by transformers' names: EnCodec's and X-Codec's `entries`, or Mimi's `sums`."""
    if kept == "sums":
        found = {"embed_sum": book.embedding_sum, "cluster_usage": book.cluster_usage, "initialized": torch.ones(1)}
    else:
        found = {"embed": book.embedding, "embed_avg": book.embedding_sum, "cluster_size": book.cluster_usage}
        found["inited"] = torch.ones(1)
    return {f"{stem}.{name}": tensor.detach() for name, tensor in found.items()}


def _fitting(source: Published, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = source.take(name)
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{source.where}: {name} is {tuple(tensor.shape)} there, {shape} by its configuration")
    return tensor
