"""What defines the quantizers of HiFi-Codec, SoCodec, Language-Codec, SimVQ, UniCodec, CLaM-TTS and NDVQ."""

import math
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


@proves("socodec", "mechanism")
def test_streams_are_products_of_small_codebooks():
    """Nearest entries found by hand in each head's channels; a code counts the heads up; missing streams are zeros."""
    quantizer = trained("ordered_pq")
    x = torch.randn(2, 20, 8)
    codes, heard = quantizer.encode(x), quantizer.input_projection(x).unflatten(2, (6, 5))
    said = torch.zeros(2, 20, 6, 5)
    for stream in range(3):
        books = [book.embedding for book in quantizer.stream(stream)]
        nearest = [torch.cdist(heard[:, :, 2 * stream + head], book).argmin(-1) for head, book in enumerate(books)]
        assert torch.equal(codes[:, stream], nearest[0] + 4 * nearest[1]) and [len(book) for book in books] == [4, 3]
        for head, book in enumerate(books):
            said[:, :, 2 * stream + head] = book[nearest[head]]
        known = said.detach().clone()
        expected = quantizer.output_projection(known.flatten(2))
        torch.testing.assert_close(quantizer.decode(codes[:, : stream + 1]), expected)


@proves("socodec", "mechanism")
def test_rows_keep_their_first_streams():
    """Nested dropout: each row of a batch is quantized by its first one, two or three streams, equally often; the
    gradient passes through these alone, and every codebook hears all rows."""
    quantizer = trained("ordered_pq").train()
    x = torch.randn(600, 2, 8, requires_grad=True)
    codes = quantizer.eval().encode(x)
    prefixes = torch.stack([quantizer.decode(codes[:, :kept]) for kept in (1, 2, 3)])
    before = [int(book.updates) for book in quantizer.levels]
    found = quantizer.train()(x, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.codes, codes), "codes do not depend on what is kept"
    same = (prefixes - found.latents).abs().amax((2, 3)) < 1e-5
    assert (same.sum(0) == 1).all() and all(0.25 < share < 0.42 for share in same.float().mean(1).tolist())
    points = quantizer.input_projection(x)
    (passed,) = torch.autograd.grad(found.latents.sum(), quantizer.input_projection.bias, retain_graph=True)
    per_row = quantizer.output_projection.weight.sum(0) * 2
    kept = (same.int().argmax(0)[:, None] + 1) * 10 > torch.arange(points.shape[2])
    torch.testing.assert_close(passed, per_row * kept.sum(0), atol=1e-3, rtol=1e-4)
    assert [int(book.updates) for book in quantizer.levels] == [count + 1 for count in before]


@proves("socodec", "mechanism")
def test_what_matters_most_comes_first(monkeypatch):
    """Learned with nested dropout, the first stream alone tells much of what all tell; without it, little."""
    left = {}
    for name in ("ordered", "plain"):
        if name == "plain":
            monkeypatch.setattr("vivavoce.quantizers.ordered.drawn_depths", lambda rows, *rest: torch.full((rows,), 4))
        torch.manual_seed(0)
        chance = torch.Generator().manual_seed(0)
        quantizer = build_quantizer({"kind": "ordered_pq", "width": 8, "heads": [16], "head_width": 2})
        optimizer = torch.optim.Adam(quantizer.parameters(), 2e-2)
        scale = 0.6 ** torch.arange(8)
        for _ in range(150):
            x = torch.randn(32, 8, 8, generator=chance) * scale
            found = quantizer(x, generator=chance)
            loss = (found.latents - x).square().mean() + found.loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x = torch.randn(32, 8, 8, generator=chance) * scale
        codes = quantizer.eval().encode(x)
        with torch.no_grad():
            left[name] = [float((quantizer.decode(codes[:, :n]) - x).square().mean() / x.var()) for n in (1, 2, 3, 4)]
    assert left["ordered"][0] < 0.6 < left["plain"][0], left
    assert all(before >= after for before, after in pairwise(left["ordered"])), left


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


@proves("unicodec-unified", "mechanism")
def test_a_domain_has_its_own_entries():
    """Of known domains only their entries are searched and drawn to the points; of unknown ones all are, by hand."""
    torch.manual_seed(0)
    quantizer = build_quantizer({"kind": "domain_vq", "width": 6, "domains": {"speech": 8, "music": 6, "sound": 10}})
    x, book = torch.randn(4, 30, 6), quantizer.book
    ranges = {"speech": (0, 8), "music": (8, 14), "sound": (14, 24), None: (0, 24)}
    names = ["music", None, "speech", "sound"]
    with quantizer.within(names), torch.no_grad():
        codes, found = quantizer.encode(x), quantizer(x)
        assert not quantizer.ties(x).any()
    for row, name in enumerate(names):
        start, end = ranges[name]
        nearest = torch.cdist(x[row], book.entries()[start:end]).argmin(-1) + start
        assert torch.equal(codes[row, 0], nearest) and torch.equal(found.codes[row, 0], nearest)
    assert torch.equal(quantizer.encode(x)[1:2], codes[1:2]) and not torch.equal(quantizer.encode(x), codes)
    domains = quantizer.domain_of(codes)[:, 0]
    assert (domains[0] == 1).all() and (domains[2] == 0).all() and (domains[3] == 2).all()
    with quantizer.within(names), pytest.raises(RequestError, match="one a row"):
        quantizer.encode(x[:2])
    with pytest.raises(RequestError, match="domain 'noise': there are speech, music, sound"):
        quantizer.numbers(["noise"])


@proves("unicodec-unified", "mechanism")
def test_a_domain_learns_its_own_part():
    """Two kinds of points, each told to be of a domain: afterwards codes found without being told are of the right
    domain; the loss is beta times one half and the other."""
    chance = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    quantizer = build_quantizer({"kind": "domain_vq", "width": 4, "domains": {"speech": 16, "music": 16}})
    optimizer = torch.optim.Adam(quantizer.parameters(), 5e-2)
    centers = torch.tensor([[2.0, 0, 0, 0], [0, -2.0, 0, 0]])
    quantizer.book.basis[:16] += 1.0  # what tells the parts apart, which one linear map serves

    def points():
        return centers[:, None] + 0.3 * torch.randn(2, 64, 4, generator=chance)

    for _ in range(150):
        with quantizer.within(["speech", "music"]):
            found = quantizer(points())
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    x = points()
    found = quantizer.eval()(x)
    right = quantizer.domain_of(found.codes)[:, 0] == torch.tensor([[0], [1]])
    assert right.float().mean() > 0.95
    entries = quantizer.book.entries()[found.codes[:, 0]]
    torch.testing.assert_close(found.loss, 1.25 * (entries - x).square().mean())


def mixture(levels=2, size=3, deviation=0.5):
    """A variational quantizer of two dimensions with entries and variance as given, and some points and their codes."""
    torch.manual_seed(0)
    quantizer = build_quantizer({"kind": "variational_rvq", "width": 2, "codebooks": levels, "codebook_size": size})
    with torch.no_grad():
        quantizer.log_variance.fill_(2 * math.log(deviation))
    x = torch.randn(1, 40, 2)
    return quantizer, x, quantizer.encode(x)[0].T


@proves("clamtts-mel-vae", "mechanism")
def test_the_bound_is_that_of_a_mixture_over_all_combinations_of_codes():
    """Each level's posterior, the other codes given, and the expectation over all nine combinations, one by one in
    float64; it lies below the likelihood itself, and touches it where one level alone is unsure."""
    quantizer, x, codes = mixture()
    entries = [book.entries().detach().double() for book in quantizer.books()]
    variance, bounds, likelihoods = 0.25, [], []
    for point, chosen in zip(x[0].double(), codes):
        def density(first, second, point=point):
            """log p(z | c) + log p(c)."""
            apart = (point - entries[0][first] - entries[1][second]).square().sum()
            return -apart / (2 * variance) - math.log(2 * math.pi * variance) - math.log(9)

        first = torch.stack([density(code, chosen[1]) for code in range(3)]).softmax(0)
        second = torch.stack([density(chosen[0], code) for code in range(3)]).softmax(0)
        pairs = [(a, b) for a in range(3) for b in range(3)]
        shares = torch.stack([first[a] * second[b] for a, b in pairs])
        values = torch.stack([density(a, b) for a, b in pairs])
        bounds.append((shares * (values - shares.log())).sum())
        likelihoods.append(values.logsumexp(0))
    found = quantizer.negative_bound(x[0], codes)
    torch.testing.assert_close(found.double(), -torch.stack(bounds).mean() / 2, atol=1e-5, rtol=1e-5)
    assert torch.stack(bounds).mean() < torch.stack(likelihoods).mean()
    assert all(bound <= whole + 1e-9 for bound, whole in zip(bounds, likelihoods))
    single, x, codes = mixture(levels=1)
    spaces = torch.cdist(x[0], single.books()[0].entries()).square() / -0.5
    whole = spaces.logsumexp(1) - math.log(2 * math.pi * 0.25) - math.log(3)
    torch.testing.assert_close(single.negative_bound(x[0], codes), -whole.mean() / 2)


@proves("clamtts-mel-vae", "mechanism")
def test_every_entry_that_could_be_meant_learns():
    """The loss is the bound and the commitment; its gradient reaches entries that no point chose, and the encoder gets
    the commitment alone."""
    quantizer, x, codes = mixture(size=8)
    for book in quantizer.books():
        book.initialized.fill_(1)
    x.requires_grad_()
    found = quantizer.train()(x)
    left, pull = x, 0
    for level, book in enumerate(quantizer.books()):
        entry = book.entries()[codes[:, level]].detach()
        pull = pull + 0.25 * (left - entry).square().mean() / 2
        left = left - entry
    torch.testing.assert_close(found.loss, pull + quantizer.negative_bound(x[0].detach(), codes))
    weights = [*quantizer.parameters()]
    passed, *grads = torch.autograd.grad(found.loss, [x, *weights], retain_graph=True)
    torch.testing.assert_close(passed, torch.autograd.grad(pull, x)[0])
    assert len({*codes[:, 0].tolist()}) < 8 or len({*codes[:, 1].tolist()}) < 8
    assert all((grad.abs().sum(-1) > 0).all() for grad, weight in zip(grads, weights) if weight.dim() > 1)


@proves("clamtts-mel-vae", "mechanism")
def test_the_bound_rises_and_the_deviation_becomes_that_of_what_is_left():
    """From k-means over the first batch on nats fall, and the variance ends near the mean square of what is left."""
    chance = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    quantizer = build_quantizer({"kind": "variational_rvq", "width": 4, "codebooks": 2, "codebook_size": 16})
    optimizer, nats = torch.optim.Adam(quantizer.parameters(), 1e-2), []
    for _ in range(120):
        x = torch.randn(4, 64, 4, generator=chance)
        found = quantizer(x)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        nats.append(float(found.loss.detach()))
    x = torch.randn(8, 128, 4, generator=chance)
    found = quantizer.eval()(x)
    left = float((x - found.latents).square().mean())
    assert sum(nats[-10:]) < sum(nats[:10]) - 0.5 and (found.usage > 0.9).all()
    assert 0.8 * left < float(quantizer.log_variance.exp()) < 1.6 * left < 0.6


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
