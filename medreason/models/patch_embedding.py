"""The patch embedding of a vision tower as a matrix product.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL in transformers embed a patch by a convolution whose kernel is the
whole patch. On a CPU torch takes several times as long for it as for the same product in float32,
tens of times in bfloat16 (findings/torch_conv3d_of_one_window_on_cpu.sh).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

_NO_PADDING = (0, 0, 0)
_NO_DILATION = (1, 1, 1)


class PatchConv3d(nn.Conv3d):
    """A convolution that multiplies where its kernel is its whole input; parameters, their names
    and shapes are those of `nn.Conv3d`, and the results to rounding."""

    def forward(self, input: Tensor) -> Tensor:  # `nn.Conv3d` names the argument so
        """(patches, channels, frames, height, width) -> (patches, outputs, 1, 1, 1); an input of
        another size than the kernel as `nn.Conv3d`."""
        if not _is_one_window(self) or input.shape[1:] != self.weight.shape[1:]:
            return super().forward(input)
        product = linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return product[:, :, None, None, None]


def _is_one_window(layer: nn.Conv3d) -> bool:
    return (layer.padding, layer.dilation, layer.groups) == (_NO_PADDING, _NO_DILATION, 1)


def multiply_patches(model: nn.Module) -> None:
    """Let the model's convolutions of whole patches multiply, on any device."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.kernel_size == module.stride:
            # Of the class, not of the object: copies, pickles and adapters of the layer have it.
            module.__class__ = PatchConv3d


def multiplies_patches(model: nn.Module) -> bool:
    return any(isinstance(module, PatchConv3d) for module in model.modules())
