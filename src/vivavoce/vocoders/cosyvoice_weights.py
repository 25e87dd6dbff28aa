"""Where the tensors of CosyVoice 2's flow matching and HiFT stand in ours (its files flow.pt and hift.pt)."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from vivavoce.nn.pairs import Pair, Published, weight_and_bias
from vivavoce.nn.weights import load_module
from vivavoce.vocoders.flow_matching import TokenToMel
from vivavoce.vocoders.hift import HiFT

_RELATIVE = {"query": "linear_q", "key": "linear_k", "value": "linear_v", "out": "linear_out"}


def fill_flow(to_mel: TokenToMel, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published flow into one of its shape. Raises `CheckpointError` for what does not fit."""
    source = Published({name: value for name, value in tensors.items() if not name.endswith("rand_noise")}, where)
    load_module(to_mel, source.all(_flow_pairs(to_mel)), where)
    source.finish()


def fill_hift(vocoder: HiFT, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published HiFT into one of its shape; those saved in training begin with `generator.`. Raises as
    `fill_flow` does."""
    source = Published({name.removeprefix("generator."): value for name, value in tensors.items()
                        if not name.startswith("discriminator.")}, where)  # fmt: skip
    load_module(vocoder, source.all(_hift_pairs(vocoder)), where)
    source.finish()


def _flow_pairs(to_mel: TokenToMel) -> Iterator[Pair]:
    c = to_mel.config
    yield Pair("embedding.weight", ["input_embedding.weight"])
    yield from weight_and_bias("voice", "spk_embed_affine_layer")
    first, repeated = 3, 3 + c.layers
    modules = {
        "0.function.linear": "encoder.embed.out.0",
        "0.function.norm": "encoder.embed.out.1",
        "1.inner.parts.0": "encoder.pre_lookahead_layer.conv1",
        "1.inner.parts.2": "encoder.pre_lookahead_layer.conv2",
        f"{repeated + 2}": "encoder.up_layer.conv",
        f"{repeated + 3}.function.linear": "encoder.up_embed.out.0",
        f"{repeated + 3}.function.norm": "encoder.up_embed.out.1",
        f"{repeated + 4 + c.upper}.function.0": "encoder.after_norm",
        f"{repeated + 4 + c.upper}.function.1": "encoder_proj",
    }
    for mine, name in modules.items():
        yield from weight_and_bias(f"parts.0.parts.{mine}", name)
    for number in range(c.layers):
        yield from _relative_layer(f"parts.0.parts.{first + number}", f"encoder.encoders.{number}")
    for number in range(c.upper):
        yield from _relative_layer(f"parts.0.parts.{repeated + 4 + number}", f"encoder.up_encoders.{number}")
    mine, there = "parts.1.estimator", "decoder.estimator"
    for own, name in (("time.0", "time_mlp.linear_1"), ("time.2", "time_mlp.linear_2"),
                      ("behind_down", "down_blocks.0.2"), ("behind_up", "up_blocks.0.2"),
                      ("last", "final_block.block.0"), ("last_norm", "final_block.block.2")):  # fmt: skip
        yield from weight_and_bias(f"{mine}.{own}", f"{there}.{name}")
    yield from _pointwise(f"{mine}.out", f"{there}.final_proj")
    middle = [(f"middle.{number}", f"mid_blocks.{number}") for number in range(c.middle)]
    for own, name in (("down", "down_blocks.0"), ("up", "up_blocks.0"), *middle):
        yield from _stage(f"{mine}.{own}", f"{there}.{name}", c.blocks)


def _relative_layer(mine: str, there: str) -> Iterator[Pair]:
    """A layer of the token encoder."""
    for own, name in _RELATIVE.items():
        yield from weight_and_bias(f"{mine}.attention.{own}", f"{there}.self_attn.{name}")
    yield Pair(f"{mine}.attention.offset.weight", [f"{there}.self_attn.linear_pos.weight"])
    yield Pair(f"{mine}.attention.content_bias", [f"{there}.self_attn.pos_bias_u"])
    yield Pair(f"{mine}.attention.offset_bias", [f"{there}.self_attn.pos_bias_v"])
    for own, name in (("attention_norm", "norm_mha"), ("feedforward_norm", "norm_ff"),
                      ("feedforward.inner", "feed_forward.w_1"), ("feedforward.out", "feed_forward.w_2")):  # fmt: skip
        yield from weight_and_bias(f"{mine}.{own}", f"{there}.{name}")


def _pointwise(mine: str, there: str) -> Iterator[Pair]:
    """A convolution of one frame there, a linear map here."""
    yield Pair(f"{mine}.weight", [f"{there}.weight"], behind=1)
    yield Pair(f"{mine}.bias", [f"{there}.bias"])


def _stage(mine: str, there: str, blocks: int) -> Iterator[Pair]:
    """A stage of the estimator."""
    for own, name in (("first", "block1.block.0"), ("first_norm", "block1.block.2"), ("second", "block2.block.0"),
                      ("second_norm", "block2.block.2"), ("time", "mlp.1")):  # fmt: skip
        yield from weight_and_bias(f"{mine}.{own}", f"{there}.0.{name}")
    yield from _pointwise(f"{mine}.skip", f"{there}.0.res_conv")
    for number in range(blocks):
        layer, stem = f"{mine}.blocks.{number}", f"{there}.1.{number}"
        for own, name in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            yield Pair(f"{layer}.attention.{own}.weight", [f"{stem}.attn1.{name}.weight"])
        for own, name in (("attention.out", "attn1.to_out.0"), ("attention_norm", "norm1"),
                          ("feedforward_norm", "norm3"), ("feedforward.inner", "ff.net.0.proj"),
                          ("feedforward.out", "ff.net.2")):  # fmt: skip
            yield from weight_and_bias(f"{layer}.{own}", f"{stem}.{name}")


def _hift_pairs(vocoder: HiFT) -> Iterator[Pair]:
    c = vocoder.config
    convolutions = len(vocoder.pitch.parts) // 2
    modules = {f"pitch.parts.{2 * number}": f"f0_predictor.condnet.{2 * number}" for number in range(convolutions)}
    modules |= {f"pitch.parts.{2 * convolutions}.function.linear": "f0_predictor.classifier",
                "source.parts.0.weigh": "m_source.l_linear", "up.0.parts.0": "conv_pre",
                "last.parts.1": "conv_post"}  # fmt: skip
    for stage in range(len(c.rates)):
        modules |= {f"up.{stage}.parts.{1 if stage else 2}": f"ups.{stage}",
                    f"enter.{stage}.parts.0": f"source_downs.{stage}"}  # fmt: skip
    for mine, name in modules.items():
        yield from weight_and_bias(mine, name)
    for stage in range(len(c.rates)):
        yield from _residuals(f"enter.{stage}.parts.1", f"source_resblocks.{stage}", len(c.source_dilations[stage]))
        for number, dilations in enumerate(c.residual_dilations):
            there = f"resblocks.{stage * len(c.residual_dilations) + number}"
            yield from _residuals(f"blocks.{stage}.branches.{number}", there, len(dilations))


def _residuals(mine: str, there: str, count: int) -> Iterator[Pair]:
    for number in range(count):
        unit = f"{mine}.parts.{number}.inner.parts"
        for first, kind in ((0, "1"), (2, "2")):
            yield Pair(f"{unit}.{first}.function.alpha", [f"{there}.activations{kind}.{number}.alpha"])
            yield from weight_and_bias(f"{unit}.{first + 1}", f"{there}.convs{kind}.{number}")
