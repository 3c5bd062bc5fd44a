"""The shapes of a vision tower by which its work and its memory are counted."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLVisionConfig,
    Qwen2VLVisionConfig,
    Qwen3VLVisionConfig,
)


@dataclass(frozen=True)
class VisionTower:
    """Layers of equal shape over the patches of an image."""

    layers: int
    width: int
    mlp_width: int
    saved_mlp_widths: int
    """So many times its width one layer's MLP saves for the backward pass."""
    rms_norm: bool
    """RMSNorm in float32 in place of LayerNorm."""
    full_attention: int
    """Layers in which a patch attends to the whole image; in the others to its window."""
    window_patches: int

    def attended_pairs(self, patches: int) -> int:
        """Pairs of patches that attention compares in all layers, for one image."""
        in_windows = (self.layers - self.full_attention) * min(patches, self.window_patches)
        return patches * (self.full_attention * patches + in_windows)

    def layer_bytes(self, size: int, *, fused: bool = False) -> int:
        """Bytes a patch that one layer saves for the backward pass, numbers being `size` bytes.
        `fused` layers (`generation.fused_layers`) compute an MLP's activation again."""
        # Queries, keys, values, attention's output, the copy that joins its pieces, the inputs of
        # the products behind the norms; an RMSNorm's float32 input and its normalised value too.
        in_float32 = self.rms_norm and not fused
        widths = 2 * (8 + size) + 7 * size if in_float32 else 10 * size
        of_mlp = (self.saved_mlp_widths - fused) * self.mlp_width
        return widths * self.width + size * of_mlp


def vision_tower(config: PreTrainedConfig) -> VisionTower:
    """The vision tower of a model's configuration.

    Raises:
        ValueError: a family whose tower is not known here.
    """
    match getattr(config, "vision_config", None):
        case Qwen2VLVisionConfig() as vision:
            return VisionTower(
                layers=vision.depth,
                width=vision.embed_dim,
                mlp_width=int(vision.mlp_ratio * vision.embed_dim),
                saved_mlp_widths=3,
                rms_norm=False,
                full_attention=vision.depth,
                window_patches=0,
            )
        case Qwen2_5_VLVisionConfig() as vision:
            assert isinstance(vision.patch_size, int)
            return VisionTower(
                layers=vision.depth,
                width=vision.hidden_size,
                # The gate, its activation, the other product, and their product.
                mlp_width=vision.intermediate_size,
                saved_mlp_widths=4,
                rms_norm=True,
                full_attention=len(vision.fullatt_block_indexes),
                window_patches=(vision.window_size // vision.patch_size) ** 2,
            )
        case Qwen3VLVisionConfig() as vision:
            return VisionTower(  # without the mergers of its deepstack features, one for each
                layers=vision.depth,
                width=vision.hidden_size,
                mlp_width=vision.intermediate_size,
                saved_mlp_widths=3,
                rms_norm=False,
                full_attention=vision.depth,
                window_patches=0,
            )
        case other:
            raise ValueError(
                f"{type(config).__name__}: work and memory of its vision tower "
                f"({type(other).__name__}) are not known here; those of Qwen2-VL, Qwen2.5-VL and "
                "Qwen3-VL are"
            )
