"""Random weights for other people's DAC and SNAC under which every part counts: activations bent, codebooks in use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec_parity import spread


@torch.no_grad()
def enliven(model: nn.Module, wave: Tensor, seed: int = 0) -> nn.Module:
    """Weights in place: signals about 1 in all layers, so that Snake bends them; gains that are not the norms of their
    directions; codebooks spread over what `wave` makes, entries of different lengths; a waveform of deviation 0.2."""
    torch.manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            _randomise(module, 0.3 if _ends_a_unit(name, module) else 1.0)
        if hasattr(module, "alpha"):
            module.alpha.uniform_(0.3, 2.0)
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=module.in_features**-0.5)
    last = [module for module in model.encoder.modules() if isinstance(module, nn.Conv1d)][-1]
    latents = model.encoder(wave)
    last.bias -= latents.mean((0, 2))  # or distances would drown in a mean that a trained encoder does not have
    quantized = _spread(model.quantizer.quantizers, latents - latents.mean((0, 2), keepdim=True), seed)
    final = [module for module in model.decoder.modules() if isinstance(module, nn.Conv1d)][-1]
    heard: list[Tensor] = []
    hook = final.register_forward_hook(lambda _, given, output: heard.append(output))
    model.decoder(quantized)
    hook.remove()
    for weight in _scales(final):
        weight *= 0.2 / heard[0].std()
    final.bias.zero_()
    return model.eval()


@torch.no_grad()
def enliven_stacks(*stacks: nn.Module, seed: int = 0) -> None:
    """As `enliven`, of the stacks alone: signals about 1 in all layers, activations that bend them."""
    torch.manual_seed(seed)
    for stack in stacks:
        for name, module in stack.named_modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                _randomise(module, 0.3 if _ends_a_unit(name, module) else 1.0)
            if hasattr(module, "beta"):
                module.alpha.uniform_(-0.5, 0.5)
                module.beta.uniform_(-0.5, 0.5)
            elif hasattr(module, "alpha"):
                module.alpha.uniform_(0.3, 2.0)


def _ends_a_unit(name: str, module: nn.Module) -> bool:
    return module.kernel_size == (1,) and ("res_unit" in name or name.endswith("block.3"))


def _randomise(module: nn.Conv1d | nn.ConvTranspose1d, gain: float) -> None:
    own = module.in_channels // module.groups * module.kernel_size[0]
    if isinstance(module, nn.ConvTranspose1d):
        own = module.in_channels * module.kernel_size[0] // module.stride[0]
    if module.bias is not None:
        module.bias.normal_(std=0.1)
    parts = dict(module.named_parameters())
    direction = next((parts[key] for key in ("weight_v", "parametrizations.weight.original1") if key in parts), None)
    if direction is None:
        parts["weight"].normal_(std=gain * own**-0.5)
        return
    direction.normal_()
    length = direction.flatten(1).norm(dim=1).view(-1, 1, 1)
    spreading = torch.empty_like(length).uniform_(0.8, 1.25)
    _scales(module)[0].copy_(gain * own**-0.5 * length * spreading)
    if hasattr(module, "weight_g"):  # of the older weight norm, which computes the weight before each call only
        module.weight = torch._weight_norm(module.weight_v, module.weight_g, 0)


def _scales(module: nn.Module) -> list[Tensor]:
    """The parameter that the size of a convolution's weights is proportional to."""
    parts = dict(module.named_parameters())
    return [next(parts[key] for key in ("weight_g", "parametrizations.weight.original0", "weight") if key in parts)]


def _spread(quantizers: nn.ModuleList, latents: Tensor, seed: int) -> Tensor:
    """Codebooks in place; returns the quantized latents [B, D, T]."""
    chance = torch.Generator().manual_seed(seed)
    residual = latents
    for number, level in enumerate(quantizers):
        stride = getattr(level, "stride", 1)
        pooled = F.avg_pool1d(residual, stride, stride)
        z = level.in_proj(pooled)
        size = len(level.codebook.weight)
        entries = spread(z.transpose(1, 2).flatten(0, 1), size, seed + number)
        level.codebook.weight.copy_(entries * (0.5 + torch.rand(size, 1, generator=chance)))
        found = level.out_proj(level.decode_latents(z)[0])
        residual = residual - found.repeat_interleave(stride, dim=-1)
    return latents - residual
