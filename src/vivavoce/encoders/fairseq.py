"""What checkpoints of fairseq's encoders have in common, its own files and S3PRL's plain copies of them."""

import ast
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vivavoce.errors import CheckpointError, RequestError
from vivavoce.nn.weights import check_asked, read_pickled_tree

# Modules of a transformer block: theirs, and ours.
BLOCK = {
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value", "self_attn.out_proj": "output",
    "self_attn_layer_norm": "attention_norm", "fc1": "widen", "fc2": "narrow", "final_layer_norm": "feedforward_norm",
}  # fmt: skip


def read_tree(path: Path, allow_pickle: bool) -> Mapping[str, Any]:
    """What a checkpoint holds under its names, read by torch's weights-only loading: tensors, plain data, settings.

    Raises `RequestError` where there is no file, `CheckpointError` where it holds anything else, or nobody has said
    that a pickle may be read.
    """
    if not path.is_file():
        raise RequestError(f"encoder: {path} is no file; give a checkpoint of your own, or download one first")
    check_asked(path, allow_pickle)
    with torch.serialization.safe_globals([Namespace]):
        tree = read_pickled_tree(path)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: holds no dictionary")
    return tree


def convolutions(text: str, source: str) -> list[tuple[int, int, int]]:
    """`[(512, 10, 5)] + [(512, 4, 2)] * 3`, as fairseq writes its convolutions."""

    def read(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return read(node.left) + read(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return read(node.left) * read(node.right)
        return ast.literal_eval(node)

    try:
        listed = read(ast.parse(text, mode="eval").body)
        found = [(int(width), int(kernel), int(stride)) for width, kernel, stride in listed]
    except (ValueError, TypeError, SyntaxError) as error:
        raise CheckpointError(f"{source}: {text!r} are no convolutions: [(width, kernel, stride), ...]") from error
    if not found:
        raise CheckpointError(f"{source}: {text!r}: no convolution at all")
    return found
