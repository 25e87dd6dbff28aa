"""Our quantizers with the weights of transformers' Mimi and EnCodec quantizers give the same codes and latents."""

import torch
import transformers
from transformers.models.encodec import modeling_encodec as encodec
from transformers.models.mimi import modeling_mimi as mimi
from transformers.models.xcodec2 import modeling_xcodec2 as xcodec2

from codec_parity import check_variety
from vivavoce.quantizers import FiniteScalarQuantizer, ResidualVectorQuantizer, SplitResidualVectorQuantizer


def agree(ours, latents, theirs_codes, theirs_decoded):
    """Codes equal, but for frames after a tie; decoded latents equal; the codes are worth comparing."""
    codes = ours.encode(latents)
    wrong = codes != theirs_codes
    tied = ours.ties(latents).cumsum(1) > 0
    assert not (wrong & ~tied).any() and tied.float().mean() < 1e-3
    check_variety(theirs_codes)
    assert torch.allclose(ours.decode(theirs_codes), theirs_decoded, atol=1e-5 * theirs_decoded.std().item())


def test_mimi_split_residual():
    config = transformers.MimiConfig(num_quantizers=8, codebook_size=512, hidden_size=64, codebook_dim=32,
                                     vector_quantization_hidden_dimension=32)
    theirs = mimi.MimiSplitResidualVectorQuantizer(config).eval()
    ours = SplitResidualVectorQuantizer(64, 8, 512, 32, smoothing=0.0).eval()
    for name in ("semantic", "acoustic"):
        part = getattr(theirs, f"{name}_residual_vector_quantizer")
        mine = getattr(ours, name)
        mine.input_projection.weight.data = part.input_proj.weight.data[..., 0].clone()
        mine.output_projection.weight.data = part.output_proj.weight.data[..., 0].clone()
        for level, (book, layer) in enumerate(zip(mine.books(), part.layers)):
            layer.codebook.embed_sum.normal_(std=0.6 * 0.8**level)
            layer.codebook.cluster_usage.uniform_(0.5, 2.0)
            book.embedding_sum.copy_(layer.codebook.embed_sum)
            book.cluster_usage.copy_(layer.codebook.cluster_usage)
    latents = torch.randn(3, 90, 64)
    with torch.no_grad():
        codes = theirs.encode(latents.transpose(1, 2)).transpose(0, 1)
        decoded = theirs.decode(codes).transpose(1, 2)
        agree(ours, latents, codes, decoded)


def test_encodec_residual():
    config = transformers.EncodecConfig(target_bandwidths=[6.0], codebook_size=1024, codebook_dim=32, hidden_size=32)
    theirs = encodec.EncodecResidualVectorQuantizer(config).eval()
    count = theirs.num_quantizers
    ours = ResidualVectorQuantizer(32, count, 1024).eval()
    for level, (book, layer) in enumerate(zip(ours.books(), theirs.layers)):
        layer.codebook.embed.normal_(std=0.8**level)
        book.load(layer.codebook.embed)
    latents = torch.randn(2, 80, 32)
    with torch.no_grad():
        codes = theirs.encode(latents.transpose(1, 2), 6.0).transpose(0, 1)
        agree(ours, latents, codes, theirs.decode(codes.transpose(0, 1)).transpose(1, 2))


def test_finite_scalar():
    """X-Codec 2's: its code is a sum of floats cut to a whole number, which rounding may lower by one; points are."""
    for levels in ([4] * 8, [8, 5, 5, 5]):
        theirs = xcodec2.Xcodec2FiniteScalarQuantization(transformers.Xcodec2Config(quantization_levels=levels))
        ours = FiniteScalarQuantizer(len(levels), levels).eval()
        latents = 1.5 * torch.randn(2, 500, len(levels))
        points, indices = theirs(latents)
        result = ours(latents)
        assert torch.allclose(result.latents, points, atol=1e-6)
        assert (result.codes[:, 0] == indices).float().mean() > 0.95
        check_variety(indices)
        assert torch.allclose(ours.decode(result.codes), points, atol=1e-6)
        assert torch.equal(ours.decode(indices[:, None].long()), theirs._indices_to_codes(indices).float())
