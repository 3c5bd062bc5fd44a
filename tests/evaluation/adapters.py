"""Adapters that change what a model says."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from medreason.config import Config
from medreason.models.load import load_model, load_processor


def adapted(config: Config, folder: Path) -> Path:
    """A LoRA of rank 8 that changes the model."""
    model = get_peft_model(load_model(config.model, config.hardware), LoraConfig(**config.adapter))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    model.save_pretrained(folder)
    load_processor(config.model).save_pretrained(folder)
    return folder
