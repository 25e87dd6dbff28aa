"""FSDP2 (`torch.distributed.fsdp.fully_shard`): each process keeps a part of every transformer layer's weights,
gradients and optimizer state, and has a whole layer only while it computes.

What stands around the layers (tables, heads, encoders' convolutions) is small: it is whole in every process, and its
gradients are summed by `Ranks`. Checkpoints are whole tensors, so that any number of processes goes on with them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vivavoce.errors import RecipeError
from vivavoce.nn.transformer import Transformer
from vivavoce.training.distributed import Ranks


def transformers(modules: Iterable[nn.Module]) -> list[Transformer]:
    """The transformers in the modules of a task."""
    return [part for module in modules for part in module.modules() if isinstance(part, Transformer)]


def recompute(modules: Mapping[str, nn.Module], where: str) -> None:
    """Have all transformers in the modules compute their layers again in the backward pass; `RecipeError` where there
    is none."""
    found = transformers(modules.values())
    if not found:
        raise RecipeError(f"{where}: recompute: {', '.join(modules)} has no transformer whose layers it is for")
    for one in found:
        one.recompute = True


def shard(modules: Mapping[str, nn.Module], ranks: Ranks, where: str) -> None:
    """Spread the layers of all transformers in the modules over the processes; alone, nothing changes.

    `RecipeError` where there is no transformer.
    """
    found = transformers(modules.values())
    if not found:
        raise RecipeError(f"{where}: shard: {', '.join(modules)} has no transformer whose layers could be spread")
    if ranks.world == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(found[0].home()["device"].type, (ranks.world,))
    for one in found:
        for parameter in one.layers.parameters():  # FSDP2 takes rows in their order, our matrices may lie in columns
            parameter.data = parameter.data.contiguous()
        outside = set(one.parameters()) - {p for layer in one.layers for p in layer.parameters()}
        for layer in one.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            for method in ("whole", "step"):
                register_fsdp_forward_method(layer, method)
        fully_shard(one, mesh=mesh, ignored_params=outside)
        register_fsdp_forward_method(one, "step")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over the processes; all of them must ask."""
    return cast(Any, tensor).full_tensor() if divided(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing its memory."""
    return cast(Any, tensor).to_local() if divided(tensor) else tensor


def divided(tensor: Tensor) -> bool:
    """Whether processes have a part of it each: a DTensor, whose module takes a second to import where none is."""
    return hasattr(tensor, "full_tensor")


def like(own: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, which every process has, spread as `own` is."""
    if not divided(own):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    here, spread_one = tensor.to(device=own.device, dtype=own.dtype), cast(Any, own)
    return distribute_tensor(here, spread_one.device_mesh, spread_one.placements, src_data_rank=None)


def spread(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors as the module has them: those of other shapes or names stay, for `load_module` to refuse."""
    own = module.state_dict()
    fits = {name for name in tensors if name in own and own[name].shape == tensors[name].shape}
    return {name: like(own[name], value) if name in fits else value for name, value in tensors.items()}


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], most: float, ranks: Ranks) -> Tensor:
    """Scale gradients such that their norm over all processes' parts is at most `most`; the norm that it was."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = {True: torch.zeros(()), False: torch.zeros(())}
    for gradient in gradients:
        part = local(gradient).float().square().sum()
        squares[divided(gradient)] = squares[divided(gradient)].to(part.device) + part
    ranks.sum([squares[True]])
    norm = (squares[True] + squares[False].to(squares[True].device)).sqrt()
    if most < float("inf"):
        torch._foreach_mul_([local(each) for each in gradients], (most / (norm + 1e-6)).clamp(max=1.0))
    return norm
