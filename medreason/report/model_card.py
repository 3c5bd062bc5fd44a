"""The model card of an export: origin, metrics, how to ask the model, what it is not for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from medreason import config as configuration
from medreason.config import Config
from medreason.console import counted
from medreason.evaluation import predictions
from medreason.metrics import ACCURACY, HEADLINE, Metric, Shown, rounded
from medreason.models import adapters
from medreason.models.model_folder import BUILT_IN
from medreason.report.names import data_name
from medreason.runs.files import read_parquet
from medreason.runs.run_folder import EvaluationFolder, RunFolder
from medreason.stats import FEWEST_FOR_INTERVAL

_EXAMPLE = """\
from io import BytesIO
from urllib.request import urlopen

from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor


def upright_on_white(image):
    if isinstance(image, str):
        is_url = image.startswith(("data:", "file://", "http://", "https://"))
        image = Image.open(BytesIO(urlopen(image).read()) if is_url else image)
    image = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


model = AutoModelForImageTextToText.from_pretrained(".", dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(".")

image = "image.png"  # a path, file://, http(s):// or data URL, or a PIL image
question = "Which imaging technique is this? A)CT, B)MRI, C)X-ray"
prompt = {prompt!r}.replace("{{question}}", question)
content = [{{"type": "image"}}, {{"type": "text", "text": prompt}}]
messages = [{{"role": "user", "content": content}}]

text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
images = [upright_on_white(image)]
inputs = processor(text=[text], images=images, return_tensors="pt").to(model.device)
output = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


WHOLE = 0.995
"""From this share on, an adapter's change counts as kept."""


def card(config: Config, model: Path, versions: str, kept: float = 1.0) -> str:
    """The card in Markdown; `versions` says what opens the folder, `kept` what share of an
    adapter's change the weights keep. A model outside a run folder has neither origin nor metrics
    to show."""
    folder = RunFolder(model.parent)
    of_run = folder.config.exists()
    trained = configuration.read(folder.config) if of_run else config
    # By name: a path on the machine that trained it means nothing elsewhere.
    base_model = trained.model.name
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [medical, visual-question-answering, medreason]",
        "---",
        f"# {folder.path.name if of_run else base_model}",
        "",
        "For research on post-training of vision-language models. **Not for diagnosis**, nor for "
        "any decision about a patient: nothing here was tested for that.",
        "",
    ]
    if of_run:
        lines += [*_origin(trained, folder, base_model), *_results(folder)]
    else:
        lines += [f"Exported from model `{base_model}`; no run folder came with it.", ""]
    if other := other_precision(config, folder):
        lines += [f"{other}.", ""]
    if kept < WHOLE:
        lines += [
            f"The adapter was merged into weights of {config.export.precision}, which keep "
            f"{100 * kept:.0f} % of its change; metrics are of the whole adapter.",
            "",
        ]
    if config.export.adapter_only and adapters.local_base(model):
        lines += [
            f"Its base model `{base_model}` was a folder of the machine that trained it: set "
            "`base_model_name_or_path` in `adapter_config.json` to where that model lies.",
            "",
        ]
    adapter, dicom = config.export.adapter_only, _may_read_dicom(folder)
    example = _example(trained, versions, adapter=adapter, dicom=dicom)
    return "\n".join([*lines, *example])


def measured_precision(folder: RunFolder) -> str | None:
    """In which the metrics of the card were measured: that of the run's last evaluation; of a run
    without one that of its training, and None outside a run folder."""
    if not folder.config.exists():
        return None
    evaluations = folder.state().evaluations
    own = EvaluationFolder(folder, evaluations[-1]).config if evaluations else folder.config
    return configuration.read(own if own.exists() else folder.config).hardware.precision


def other_precision(config: Config, folder: RunFolder) -> str:
    """That the exported weights are not in the precision of the card's metrics; else empty."""
    measured = measured_precision(folder)
    if config.export.adapter_only or measured in (None, config.export.precision):
        return ""
    return (
        f"The weights are in {config.export.precision} and the numbers were measured in "
        f"{measured}, so that replies can differ; export.precision={measured} gives the weights "
        "that were measured"
    )


def _origin(config: Config, folder: RunFolder, base_model: str) -> list[str]:
    state = folder.state()
    parts = state.train_parts
    chosen = f"{state.chosen_step}, {state.chosen_because}; no test question was asked for it"
    facts = {
        "base model": _described(config),
        "method": config.method.name,
        "data": data_name(config),
        "data digest": parts.get("data", "-"),
        "trained on": _trained_on(folder),
        "rewards": ", ".join(f"{n} x {r.weight:g}" for n, r in config.reward.items())
        if config.method.algorithm == "grpo"
        else "-",
        "adapter": f"LoRA rank {config.adapter['r']}" if config.adapter else "none, all weights",
        "seed": config.seed,
        **({"optimizer step": chosen} if state.chosen_because else {}),
        "train key": state.train_key,
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items()), ""]


_SHIPPED = (
    "the test model that medreason ships, 1.6 million parameters in Qwen2-VL's architecture, "
    "trained on drawn images; it has seen none of a patient"
)
_RANDOM = "random weights in Qwen2-VL's architecture, trained on nothing"


def _described(config: Config) -> str:
    """Its name, and what a stranger knows it by: the id on the hub, or what the built-in one is."""
    name, path = config.model.name, config.model.path
    if config.model.weights == "random":
        return f"{name}: {_RANDOM}"
    if path == BUILT_IN:
        return f"{name}: {_SHIPPED}"
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists()
    revision = f" at revision {config.model.revision}" if config.model.revision else ""
    return f"{name} (`{path}`{revision})" if is_id else name


def _trained_on(folder: RunFolder) -> str:
    """The cells that had training questions: `210 questions; xray: anatomy, disease`. The cells
    that were asked for may be more, since a data set need not have them all."""
    files = sorted(folder.path.glob("evaluations/*/data.json"))  # all say the same of the training
    if not files:
        return "-"
    trained = EvaluationFolder(folder, files[0].parent.name).training_questions()
    total = sum(sum(tasks.values()) for tasks in trained.values())
    listed = [f"{modality}: {', '.join(tasks)}" for modality, tasks in trained.items()]
    return "; ".join([counted(total, "question"), *listed])


def _clusters(evaluation: EvaluationFolder, count: int) -> str:
    """` in 6 patients`: what an evaluation's intervals take as independent; empty of questions."""
    clusters = configuration.read(evaluation.config).statistics.clusters
    if clusters == "question":
        return ""
    patients = predictions.read_frame([evaluation.path], ["patient"])["patient"].fillna("") != ""
    if clusters == "image" or not patients.any():
        return f" in {counted(count, 'image')}"
    others = "" if patients.all() else " and, where none is known, images"
    return f" in {counted(count, 'patient')}{others}"


def _results(folder: RunFolder) -> list[str]:
    evaluations = folder.state().evaluations
    if not evaluations:
        return ["No evaluation was run.", ""]
    evaluation = EvaluationFolder(folder, evaluations[-1])
    found = predictions.with_guessing(predictions.load_metrics(evaluation.path), evaluation.path)
    metrics: dict[str, Any] = found["overall"]
    accuracy, low, high = (rounded(100 * metrics[metric]) for metric in ACCURACY)
    few = metrics[Metric.CLUSTERS] < FEWEST_FOR_INTERVAL
    shown = {
        f"accuracy over {counted(metrics[Metric.N], 'question')}"
        f"{_clusters(evaluation, metrics[Metric.CLUSTERS])}, 95 % interval": f"{accuracy} "
        + ("(too few clusters for an interval)" if few else f"[{low}, {high}]"),
        **{
            metric.explanation: rounded(100 * metrics[metric])
            for metric in Metric.shown_in(Shown.CARD)
            if metric not in HEADLINE and metrics.get(metric) is not None
        },
    }
    rows = [f"| {name} | {value} |" for name, value in shown.items()]
    return ["| measured | % |", "|---|---:|", *rows, ""]


_NO_DICOM = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def _may_read_dicom(folder: RunFolder) -> bool:
    """Whether a window of CT says something: not where all images of the run's test are pictures
    by their names."""
    if not folder.config.exists() or not (evaluations := folder.state().evaluations):
        return True
    path = folder.evaluation(evaluations[-1]) / "predictions.parquet"
    images = read_parquet(path, ["image"])["image"].to_pylist() if path.exists() else [""]
    return not all(image.lower().endswith(_NO_DICOM) for image in images)


def _example(config: Config, versions: str, *, adapter: bool, dicom: bool) -> list[str]:
    """Code that asks the model about an image of 8 bits as evaluation does; with `dicom` the window
    in which images of CT were shown."""
    code = _EXAMPLE.format(
        prompt=config.prompt.evaluation, max_new_tokens=config.evaluation.max_new_tokens
    )
    packages = ("torch", "torchvision", "transformers", "accelerate", *(["peft"] * adapter))
    installed = (
        f"Opens with {versions}. With `pip install {' '.join(packages)}`, in the folder of this "
        "file (before transformers 4.56 `dtype` is `torch_dtype`):"
    )
    window = configuration.handling(config.data)[0].ct_window
    deep = (
        "It reads pictures of 8 bits; `action=prepare` of medreason makes such of DICOM and of "
        "deeper ones."
    )
    if dicom:
        deep += (
            f" CT in the window {window.center:g}/{window.width:g} HU"
            f"{'' if window.replaces_that_of_files else ' where the file names none'}."
        )
    return [installed, "", "```python", code, "```", "", deep, ""]
