"""Which cut of a step into micro-batches takes less time, from shapes alone."""

from __future__ import annotations

from medreason.config import Config
from medreason.models.load import meta_model
from medreason.models.vision_tower import vision_tower
from medreason.training.memory_estimate import DeviceBatch

_LAUNCH = 6e-6
"""Seconds of Python and autograd to launch a kernel."""
_LAUNCHES, _LAUNCHES_AGAIN = 64, 88
"""Of a layer in an update, without and with recomputing; counted for Qwen2-VL-2B
(tests/benchmark/test_kernel_count.py)."""
_FLOPS = 150e12
"""FLOP/s that products reach: about half of an A100's data sheet, a sixth of an H100's. On a
faster card launches weigh more, so that larger micro-batches pay."""


def relative_seconds(config: Config, batch: DeviceBatch) -> float:
    """Of the updates of a step: what its products take, and at least what Python takes to launch
    the kernels of each micro-batch. To be compared, not believed."""
    again = config.hardware.recomputes
    model = meta_model(config.model)
    text, tower = model.config.get_text_config(), vision_tower(model.config)
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    visual = sum(p.numel() for name, p in model.named_parameters() if ".visual." in name)
    # Forward once, backward once for the inputs and, of trained weights, once for the weights.
    passes = (2 if config.adapter else 3) + again
    of_tower = 1 if config.adapter else passes
    flops = 2 * batch.tokens * layers * passes
    flops += 2 * batch.images * batch.patches * visual * of_tower
    launches = (_LAUNCHES_AGAIN if again else _LAUNCHES) * (text.num_hidden_layers + tower.layers)
    return config.accumulation * max(flops / _FLOPS, launches * _LAUNCH)
