"""Quantizers as systems of their own: inside a small autoencoder they train, and what defines each holds."""

import torch

from proves import proves
from vivavoce.quantizers import build_quantizer


def autoencoder(config, steps=150):
    """Train a small network through the quantizer on points of a curve in 8 dimensions; error before, after."""
    torch.manual_seed(0)
    quantizer = build_quantizer({**config, "width": 3})
    first = torch.nn.Linear(8, 3)
    last = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    at = torch.linspace(0, 3, 256)
    x = torch.stack([torch.sin((i + 1) * at) for i in range(8)], dim=-1)[None]
    optimizer = torch.optim.Adam([*first.parameters(), *last.parameters()], 1e-2)
    errors = []
    for _ in range(steps):
        quantized = quantizer(first(x))
        error = (last(quantized.latents) - x).square().mean()
        optimizer.zero_grad()
        (error + 0.25 * quantized.loss).backward()
        optimizer.step()
        errors.append(error.item())
    quantizer.eval()
    with torch.no_grad():
        codes = quantizer.encode(first(x))
        made = (last(quantizer.decode(codes)) - x).square().mean().item()
    return errors, made, codes, x.var().item()


@proves("fsq", "recipe")
def test_fsq_trains_and_generates():
    errors, made, codes, variance = autoencoder({"kind": "fsq", "levels": [8, 5, 5]})
    assert made < 0.2 * variance < errors[0] and len(codes.unique()) > 12


@proves("vq-vae", "recipe")
def test_vq_vae_trains_and_generates():
    errors, made, codes, variance = autoencoder({"kind": "vq", "codebook_size": 64})
    assert made < 0.2 * variance < errors[0] and len(codes.unique()) > 12


@proves("fsq", "mechanism")
def test_fsq_is_a_bounded_grid_without_a_codebook():
    """Every point of the product grid has its code, values round to the nearest, gradients pass the rounding."""
    quantizer = build_quantizer({"kind": "fsq", "width": 3, "levels": [8, 5, 5]})
    assert not list(quantizer.parameters()) and not quantizer.state_dict()
    grid = quantizer.decode(torch.arange(200).view(1, 1, 200))
    assert len(grid[0].unique(dim=0)) == quantizer.codebook_size == 200
    x = torch.randn(1, 300, 3, requires_grad=True)
    result = quantizer(x)
    bounded = quantizer.bound(x) / (quantizer.counts // 2)
    nearest = torch.cdist(bounded * (quantizer.counts // 2), grid * (quantizer.counts // 2)).argmin(-1)
    assert torch.equal(nearest, result.codes[:, 0]) and result.loss == 0
    weights = torch.randn_like(x)
    passed = torch.autograd.grad((result.latents * weights).sum(), x)[0]
    assert torch.allclose(passed, torch.autograd.grad((bounded * weights).sum(), x)[0], atol=1e-6)


@proves("vq-vae", "mechanism")
def test_vq_vae_copies_gradients_and_moves_its_entries_to_their_vectors():
    """The straight-through estimator, the commitment term, and the exponential moving averages of its appendix A.1."""
    quantizer = build_quantizer({"kind": "vq", "width": 2, "codebook_size": 3, "smoothing": 0.0, "dead_ratio": 0.0})
    entries = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    quantizer.books()[0].load(entries, torch.tensor([2.0, 2.0, 2.0]))
    x = torch.tensor([[[0.5, 0.5], [3.0, 1.0], [4.0, 1.0]]], requires_grad=True)
    result = quantizer(x)
    assert result.codes.tolist() == [[[0, 1, 1]]]
    assert torch.allclose(result.latents.detach(), entries[[0, 1, 1]])
    weights = torch.randn(1, 3, 2)
    assert torch.equal(torch.autograd.grad((result.latents * weights).sum(), x, retain_graph=True)[0], weights)
    assert torch.allclose(result.loss, (x - entries[[0, 1, 1]]).square().mean())
    assert torch.allclose(torch.autograd.grad(result.loss, x)[0], 2 * (x - entries[[0, 1, 1]]).detach() / 6)
    counts, sums = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[0.5, 0.5], [7.0, 2.0], [0.0, 0.0]])
    expected = (0.99 * 2 * entries + 0.01 * sums) / (0.99 * 2 + 0.01 * counts)[:, None]
    assert torch.allclose(quantizer.books()[0].embedding, expected)
