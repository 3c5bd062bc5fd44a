"""`action=export`: a model folder that transformers alone loads, with a model card."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from medreason.config import Config
from medreason.config.hardware import PRECISIONS
from medreason.console import notice, show
from medreason.models import adapters, layout, model_folder
from medreason.report import model_card
from medreason.runs.files import atomic_folder, read_json
from medreason.runs.run_folder import RunFolder


def run(config: Config) -> None:
    """Write `export.to` atomically, from the model, adapter or run folder at `model.path`.

    Raises:
        ValueError: there is no model, no target, or the target exists.
    """
    target = _target(config)
    config = replace(config, model=model_folder.of_run(config.model))
    path = config.model.path
    _check_model(config)
    config = replace(config, export=replace(config.export, precision=_precision(config)))
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
    if other := model_card.other_precision(config, RunFolder(Path(path).parent)):
        notice(f"{other}; the card says so, too")
    notice(f"opens with {needed}")
    if config.export.adapter_only and (base := adapters.local_base(target)):
        notice(
            f"its base model is {base}, a folder of this machine: elsewhere set "
            f"base_model_name_or_path in {target}/adapter_config.json to that model's folder or id"
        )


def _target(config: Config) -> Path:
    if not config.export.to:
        raise ValueError(
            "export.to has no value; set export.to=... to a folder that does not exist"
        )
    target = Path(config.export.to)
    if target.exists():
        raise ValueError(f"export.to={target} exists; remove it or choose another folder")
    return target


def _check_model(config: Config) -> None:
    path = config.model.path
    model_folder.check(path)
    adapters.check(path)
    model_folder.check_hub(path, config.model.revision)
    if config.export.adapter_only and not model_folder.is_adapter(path):
        raise ValueError(
            f"export.adapter_only=true: model.path={path!r} is no adapter; leave it out"
        )


def _precision(config: Config) -> str:
    """Of the weights: what `export.precision` says, else what keeps the answers of the run, else
    what keeps the weights of the checkpoint."""
    path = config.model.path
    of_run = RunFolder(Path(path).parent)
    chosen = config.export.precision or model_card.measured_precision(of_run)
    facts_file = Path(model_folder.resolve(path)) / "config.json"
    if not chosen and facts_file.exists():
        facts = read_json(facts_file)
        chosen = facts.get("dtype") or facts.get("torch_dtype")
    return chosen if chosen in PRECISIONS else config.hardware.precision


def _save_merged(config: Config, target: Path) -> float:
    """What share of an adapter's change the saved weights keep."""
    # torch and transformers, seconds
    from medreason.models.load import END_TOKENS, load_merged, load_processor

    precision = config.export.precision
    assert precision
    hardware = replace(config.hardware, precision=precision, attention="sdpa")
    model, kept = load_merged(config.model, hardware)
    processor = load_processor(config.model)
    generation = model.generation_config
    assert generation is not None
    # Those at which evaluation stops; a checkpoint may name one of them alone.
    generation.eos_token_id = processor.tokenizer.convert_tokens_to_ids(END_TOKENS)
    model.save_pretrained(target)
    processor.save_pretrained(target)  # tokenizer, image processor, chat template
    return kept
