"""What defines the quantizers of HiFi-Codec, Language-Codec, SimVQ and NDVQ."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from proves import proves
from quantizers.quantizer_zoo import trained
from vivavoce.errors import RecipeError, RequestError
from vivavoce.quantizers import build_quantizer
from vivavoce.quantizers.learned import LearnedCodebook, LearnedResidualVectorQuantizer
from vivavoce.quantizers.normal import NormalCodebook


@proves("hifi-codec", "mechanism")
def test_groups_are_quantized_apart_and_residually():
    """Two groups of two: nearest entries found by hand in each half, codes in the published order, group by group."""
    quantizer = trained("grouped_rvq")
    x = torch.randn(2, 20, 8)
    codes, frames = quantizer.encode(x), []
    assert [book.size for part in quantizer.parts() for book in part.books()] == [32, 16, 24, 8]
    for group, part in enumerate(quantizer.parts()):
        residual, said = x[..., 4 * group : 4 * group + 4], 0
        for level, book in enumerate(part.books()):
            nearest = torch.cdist(residual, book.embedding).argmin(-1)
            assert torch.equal(codes[:, 2 * level + group], nearest), f"group {group}, level {level}"
            residual, said = residual - book.embedding[nearest], said + book.embedding[nearest]
        frames.append(said)
    torch.testing.assert_close(quantizer.decode(codes), torch.cat(frames, -1))
    other = x.clone()
    other[..., 4:] = torch.randn(2, 20, 4)
    assert torch.equal(quantizer.encode(other)[:, ::2], codes[:, ::2])
    assert not torch.equal(quantizer.encode(other)[:, 1::2], codes[:, 1::2])
    with pytest.raises(RequestError, match="equal groups"):
        build_quantizer({"kind": "grouped_rvq", "width": 9, "groups": 2})


@proves("language-codec", "mechanism")
def test_the_first_codebooks_divide_the_channels():
    """Each of the first three hears its third of the channels and nothing else; the fourth what they leave over."""
    quantizer = trained("masked_channel_rvq")
    x = torch.randn(1, 40, 9)
    codes = quantizer.encode(x)
    for part in range(3):
        book = quantizer.books()[part].embedding
        outside = torch.ones(9, dtype=torch.bool)
        outside[3 * part : 3 * part + 3] = False
        assert not book[:, outside].any() and book[:, ~outside].std() > 0.1
        other = x.clone()
        other[..., 3 * part : 3 * part + 3] += torch.randn(1, 40, 3)
        same = (quantizer.encode(other) == codes).float().mean((0, 2))
        assert same[part] < 0.9 and all(same[level] == 1 for level in range(3) if level != part)
    left = x - sum(quantizer.books()[level].embedding[codes[:, level]] for level in range(3))
    assert torch.equal(codes[:, 3], torch.cdist(left, quantizer.books()[3].embedding).argmin(-1))
    assert torch.equal(quantizer.train()(x).codes[:, :3], codes[:, :3]), "encoding forgets the masks of training"


@proves("language-codec", "mechanism")
def test_the_first_codes_carry_equally_much():
    """The error falls alike with each of the first three codes; in a plain residual quantizer most with the first."""
    chance = torch.Generator().manual_seed(0)
    falls = {}
    for kind in ("masked_channel_rvq", "rvq"):
        quantizer = build_quantizer({"kind": kind, "width": 9, "codebooks": 4, "codebook_size": 32})
        for _ in range(20):
            quantizer(torch.randn(4, 100, 9, generator=chance))
        x = torch.randn(4, 100, 9, generator=chance)
        codes = quantizer.eval().encode(x)
        errors = [1.0] + [float((quantizer.decode(codes[:, :n]) - x).square().mean()) for n in (1, 2, 3)]
        steps = [before - after for before, after in pairwise(errors)]
        falls[kind] = max(steps) / min(steps)
    assert falls["masked_channel_rvq"] < 1.3 < 1.5 < falls["rvq"], falls


class Plain(LearnedCodebook):
    """Entries that learn by gradient, each for itself: what SimVQ is measured against."""

    def __init__(self, size, width):
        super().__init__(size, width)
        self.free = nn.Parameter(torch.randn(size, width) / width**0.5)

    def entries(self):
        return self.free

    def scores(self, points):
        return points @ self.free.t() - self.free.square().sum(1) / 2


@proves("simvq", "mechanism")
def test_one_code_moves_the_space_of_all():
    """The basis stays; a gradient that only one entry's points make moves every entry, through the linear map."""
    torch.manual_seed(0)
    quantizer = build_quantizer({"kind": "sim_vq", "width": 6, "codebook_size": 32}).train()
    (book,) = quantizer.books()
    basis, before = book.basis.clone(), book.entries().detach().clone()
    x = before[5].expand(1, 8, 6) + 0.01 * torch.randn(1, 8, 6)
    optimizer = torch.optim.SGD(quantizer.parameters(), 1.0)
    result = quantizer(x)
    assert set(result.codes.flatten().tolist()) == {5}
    result.loss.backward()
    optimizer.step()
    moved = (book.entries() - before).abs().amax(1)
    assert torch.equal(book.basis, basis) and (moved > 1e-6).all() and "basis" not in dict(book.named_parameters())


@proves("simvq", "mechanism")
def test_no_entry_is_left_behind():
    """On points far from where the entries began, SimVQ comes to use most of them, a plain codebook few."""
    chance = torch.Generator().manual_seed(0)
    used = {}
    for name in ("sim", "plain"):
        torch.manual_seed(0)
        if name == "sim":
            quantizer = build_quantizer({"kind": "sim_vq", "width": 4, "codebook_size": 64})
        else:
            quantizer = LearnedResidualVectorQuantizer([Plain(64, 4)])
        optimizer = torch.optim.Adam(quantizer.parameters(), 5e-2)
        for _ in range(300):
            loss = quantizer(3 + torch.randn(1, 256, 4, generator=chance)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        used[name] = float(quantizer.eval()(3 + torch.randn(1, 4096, 4, generator=chance)).usage)
    assert used["sim"] > 0.6 and used["sim"] > 2 * used["plain"], used


def two_normals():
    """A quantizer of two codes: around 0 with deviation 1, around 1 with deviation 0.1."""
    quantizer = build_quantizer({"kind": "normal_vq", "width": 1, "codebooks": 1, "codebook_size": 2})
    (book,) = quantizer.books()
    with torch.no_grad():
        book.mean.copy_(torch.tensor([[0.0], [1.0]]))
        book.log_deviation.copy_(torch.tensor([[1.0], [0.1]]).log())
    return quantizer


@proves("ndvq", "mechanism")
def test_a_code_is_the_likeliest_distribution():
    """Not the nearest mean: 0.7 lies nearer to 1, but a deviation of 0.1 makes it unlikely there; densities by hand."""
    quantizer = two_normals()
    x = torch.linspace(-1, 2, 301)[None, :, None]
    means, deviations = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.1])
    density = torch.distributions.Normal(means, deviations).log_prob(x)
    assert torch.equal(quantizer.encode(x)[0, 0], density.argmax(-1)[0])
    assert quantizer.encode(torch.tensor([[[0.7]]])).item() == 0 and abs(0.7 - 1) < abs(0.7 - 0)


@proves("ndvq", "mechanism")
def test_training_decodes_a_sample_and_inference_the_mean():
    quantizer = two_normals()
    x = torch.ones(1, 20000, 1)
    torch.manual_seed(0)
    said = quantizer.train()(x).latents
    assert abs(float(said.mean()) - 1) < 0.01 and abs(float(said.std()) - 0.1) < 0.005
    assert (quantizer.eval()(x).latents == 1).all() and (quantizer.decode(quantizer.encode(x)) == 1).all()


@proves("ndvq", "mechanism")
def test_deviations_learn_how_far_points_lie_and_keep_a_margin():
    """By likelihood: the deviation becomes that of the code's points; with none, it stops at the least."""
    torch.manual_seed(0)
    book = NormalCodebook(1, 2, narrowest=0.05)
    optimizer = torch.optim.Adam(book.parameters(), 2e-2)
    points = torch.tensor([2.0, -1.0]) + torch.tensor([0.5, 0.0]) * torch.randn(4000, 2)
    for _ in range(400):
        loss = book.distance(points, torch.zeros(4000, dtype=torch.int64)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(book.mean[0], torch.tensor([2.0, -1.0]), atol=0.05)
    deviation = book.deviations()[0]
    assert abs(float(deviation[0]) - 0.5) < 0.05 and abs(float(deviation[1]) - 0.05 / 2**0.5) < 1e-6


def test_impossible_ones_are_named():
    for options, why in (({"kind": "masked_channel_rvq", "masked": 5}, "masked=5"),
                         ({"kind": "grouped_rvq", "codebooks": 3}, "equal groups"),
                         ({"kind": "fsq", "times": 0}, "times=0")):
        with pytest.raises(RequestError, match=why):
            build_quantizer({"width": 8, **options})
    with pytest.raises(RecipeError, match="groupes"):
        build_quantizer({"kind": "grouped_rvq", "width": 8, "groupes": 2})
