#!/usr/bin/env bash
# torch 2.13.0 on a CPU: the patch embedding of Qwen2-VL (nn.Conv3d whose kernel and stride are the whole input, one output place a patch)
# takes many times as long as the same product written as nn.functional.linear: several times in float32, tens of times in bfloat16, whose
# backward is dearer still.
#
# transformers 5.23.0 computes it so in Qwen2-VL and Qwen2.5-VL, which share the module (`PatchEmbed`, checked below).
#
# Expected: a convolution of one window is a matrix product, and oneDNN's or MKL's kernel for it is used.
# Seen: oneDNN's convolution is used, here for the 1,568 patches of two 392-pixel images.
#
# Why it matters: bfloat16 is no faster than float32 for short replies on a CPU, and whoever looks for the reason looks at the layers; the
# profile shows one call. medreason/models/patch_embedding.py multiplies instead.
#
# Output seen on 2026-11-29 (an Intel CPU with AMX, one thread, other work beside it; of three runs 5 to 6, 84 to 92 and 106 to 145; the script
# wants ratios above 2 in float32 and 8 in bfloat16):
#   torch 2.13.0, transformers 5.23.0, 1568 patches of 1,176 numbers to 384
#   float32  forward              convolution takes 6 times as long as the product
#   float32  forward and backward convolution takes 6 times as long as the product
#   bfloat16 forward              convolution takes 84 times as long as the product
#   bfloat16 forward and backward convolution takes 145 times as long as the product
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 numpy==2.4.6
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat > measure.py <<'PY'
import statistics
import time

import torch
import transformers
from torch.nn.functional import linear
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

PATCHES, WIDTH, ROUNDS = 1568, 384, 7
torch.set_num_threads(1)
torch.manual_seed(0)
print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, {PATCHES} patches of 1,176 numbers to {WIDTH}")
for kind in (PatchEmbed, Qwen2_5_VisionPatchEmbed):
    proj = kind(patch_size=14, temporal_patch_size=2, in_channels=3, embed_dim=WIDTH).proj
    assert type(proj) is torch.nn.Conv3d and proj.kernel_size == proj.stride == (2, 14, 14), "changed"


def seconds(function):
    began = time.process_time()
    function()
    return time.process_time() - began


for dtype, least in ((torch.float32, 2), (torch.bfloat16, 8)):
    embed = PatchEmbed(patch_size=14, temporal_patch_size=2, in_channels=3, embed_dim=WIDTH).to(dtype)
    patches = torch.randn(PATCHES, 3 * 2 * 14 * 14, dtype=dtype)
    ways = (lambda: embed(patches), lambda: linear(patches, embed.proj.weight.flatten(1)))
    with torch.no_grad():
        first, second = (way() for way in ways)
        difference = ((first - second).abs().max() / first.abs().max()).item()
        assert difference < (1e-4 if dtype == torch.float32 else 2e-2), difference
    for name, backward in (("forward", False), ("forward and backward", True)):
        def run(way):
            with torch.set_grad_enabled(backward):
                result = way()
                if backward:
                    result.float().sum().backward()
        times = [[seconds(lambda way=way: run(way)) for way in ways] for _ in range(ROUNDS)]
        ratio = statistics.median(a / b for a, b in times[1:])
        print(f"{str(dtype)[6:]:<8} {name:<20} convolution takes {ratio:.0f} times as long as the product")
        assert ratio > least, "changed"
PY
env/bin/python measure.py
