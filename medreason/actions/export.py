"""`action=export`: a model folder that transformers alone loads, with a model card."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from medreason.config import Config
from medreason.console import notice, show
from medreason.models import adapters, layout, model_folder
from medreason.report import model_card
from medreason.runs.files import atomic_folder


def run(config: Config) -> None:
    """Write `export.to` atomically, from the model, adapter or run folder at `model.path`.

    Raises:
        ValueError: there is no model, no target, or the target exists.
    """
    if not config.export.to:
        raise ValueError(
            "export.to has no value; set export.to=... to a folder that does not exist"
        )
    target = Path(config.export.to)
    if target.exists():
        raise ValueError(f"export.to={target} exists; remove it or choose another folder")
    config = replace(config, model=model_folder.of_run(config.model))
    path = config.model.path
    model_folder.check(path)
    adapters.check(path)
    model_folder.check_hub(path, config.model.revision)
    if config.export.adapter_only and not model_folder.is_adapter(path):
        raise ValueError(
            f"export.adapter_only=true: model.path={path!r} is no adapter; leave it out"
        )
    kept = 1.0
    with atomic_folder(target) as unfinished:
        if config.export.adapter_only:
            # peft writes a card of its own; *.bin and optimizer states are of the training.
            unused = shutil.ignore_patterns("*.bin", "optimizer*", "README.md")
            shutil.copytree(path, unfinished, ignore=unused)
            layout.rename_adapter(unfinished, config.export.layout)
        else:
            kept = _save_merged(config, unfinished)
        needed = layout.versions(
            published=layout.write_published(unfinished),
            adapter=config.export.adapter_only,
            layout=config.export.layout,
        )
        card = model_card.card(config, Path(path), needed, kept)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
    show(target)
    if kept < model_card.WHOLE:
        notice(
            f"export.precision={config.export.precision} keeps {100 * kept:.0f} % of the adapter's "
            "change, the rest is less than the steps of the weights; export.precision=float32 and "
            "export.adapter_only=true keep all of it"
        )
    notice(f"opens with {needed}")
    if config.export.adapter_only and (base := adapters.local_base(target)):
        notice(
            f"its base model is {base}, a folder of this machine: elsewhere set "
            f"base_model_name_or_path in {target}/adapter_config.json to that model's folder or id"
        )


def _save_merged(config: Config, target: Path) -> float:
    """What share of an adapter's change the saved weights keep."""
    # torch and transformers, seconds
    from medreason.models.load import END_TOKENS, load_merged, load_processor

    hardware = replace(config.hardware, precision=config.export.precision, attention="sdpa")
    model, kept = load_merged(config.model, hardware)
    processor = load_processor(config.model)
    generation = model.generation_config
    assert generation is not None
    # Those at which evaluation stops; a checkpoint may name one of them alone.
    generation.eos_token_id = processor.tokenizer.convert_tokens_to_ids(END_TOKENS)
    model.save_pretrained(target)
    processor.save_pretrained(target)  # tokenizer, image processor, chat template
    return kept
