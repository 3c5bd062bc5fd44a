"""The example of another format in medreason/data/README.md works as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import commands
import readme_files
from PIL import Image

README = (Path(__file__).parents[2] / "medreason/data/README.md").read_text()

FILES = readme_files.shown_in("medreason/data/README.md")


def test_one_module_and_one_yaml_file_are_a_data_set(tmp_path: Path) -> None:
    files = {name: text for name, text in FILES.items() if "my_set" in name}
    assert set(files) == {"my_set.py", "conf/data/my_set.yaml"}
    assert 20 <= len(files["my_set.py"].splitlines()) <= 35
    own = files["my_set.py"].replace('"xray"', 'row.get("kind", "xray")')
    readme_files.write(files | {"my_set.py": own}, tmp_path)
    (tmp_path / "images").mkdir()
    row = {"text": "Fracture?", "choices": ["Yes", "No"], "right": 1}
    rows = [row | {"file": f"{i}.png"} for i in range(10)]
    wrong = [{"file": None}, {"right": "x"}, {"choices": [1, 2]}, {"text": None}, {"right": 9}]
    wrong += [{"right": 99}, {"kind": "CT"}]
    lines = [*rows, {"file": "1.png", "text": "Fracture?"}, *[rows[0] | w for w in wrong], 7]
    text = "\n".join([*map(json.dumps, lines), '{"file": "1.png", "text'])
    (tmp_path / "images/questions.jsonl").write_text(text)
    for i in range(10):
        Image.effect_noise((40, 40), 20 + i).save(tmp_path / f"images/{i}.png")
    words = ["--config-dir", "conf", "action=audit", "data=my_set", "data.root=images"]
    paths = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = commands.medreason(
        *words, "tracking=none", cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("outputs/runs/audit-my_set-*/audit.json")
    report = json.loads(written.read_text())
    assert report["cells"] == {"xray": {"disease": {"train": 7, "test": 3}}}
    assert report["images"]["read"] == 10
    bad, *others = report["unparsed"]
    assert (bad["row"], "no 'choices'" in bad["reason"]) == (10, True)
    assert [other["row"] for other in others] == list(range(11, 20))
    reasons = ("image is empty; needs", "TypeError", "option 1 is 1; needs a text")
    reasons += ("question is None", "is no letter of its 2 options", "option 99")
    reasons += ("modality='CT'; known: 'ct', 'mri'", "TypeError", "is no JSON")
    assert others[6]["reason"].endswith("did you mean 'ct'?")
    assert all(r in other["reason"] for r, other in zip(reasons, others, strict=True))


def test_own_questions_are_read_as_the_readme_shows_them(tmp_path: Path) -> None:
    """Its table of three rows, with more of their kind, by each of its commands and its file."""
    section = README.partition("## Your own questions")[2].partition("\n## ")[0]
    (table,) = re.findall(r"```\n(image,.*?)```", section, re.DOTALL)
    header, *shown = table.splitlines()
    assert len(shown) == 3
    rows = [
        line.replace("/1.", f"/{i}.").replace("/2.", f"/{i + 12}.").replace(",p", f",p{i}")
        for i in range(1, 13)
        for line in shown
    ]
    (tmp_path / "mydata/images").mkdir(parents=True)
    for i in range(1, 25):
        Image.effect_noise((40, 40), 20 + i).save(tmp_path / f"mydata/images/{i}.png")
    typed = [shlex.split(words) for words in re.findall(r"^    .*medreason (.*)$", section, re.M)]
    assert len(typed) == 3
    name = "my/data/cohort.yaml"
    readme_files.write({name: FILES[name]}, tmp_path)
    for words in [*typed, ["--config-dir", "my", "data=cohort"]]:
        text = "\n".join([header, *rows])
        if "data.columns.question=text" in words:  # where the table and its images have other names
            text = text.replace("question,", "text,").replace("images/", "")
        (tmp_path / "mydata/questions.csv").write_text(text)
        words = [word for word in words if not word.startswith("method=")]
        done = commands.medreason(*words, "action=audit", "tracking=none", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (written,) = tmp_path.glob("outputs/runs/audit-*/audit.json")
        report = json.loads(written.read_text())
        assert set(report["cells"]) == {"xray"}
        assert set(report["cells"]["xray"]) == {"disease", "anatomy", "attributes"}
        assert report["options"] == {"0": 12, "2": 24}
        assert report["row_counts"]["train"] + report["row_counts"]["test"] == 36
        assert report["row_counts"]["test"] > 0
        assert not report["unparsed"]
        shutil.rmtree(tmp_path / "outputs")


def test_a_label_group_with_a_space_is_asked_about(tmp_path: Path) -> None:
    """As the README types it, and as its file."""
    (command,) = re.findall(r"medreason (action=plan data=labelled_images .*)", README)
    readme_files.write({"my/data/tumours.yaml": FILES["my/data/tumours.yaml"]}, tmp_path)
    (tmp_path / "mydata").mkdir()
    rows = [
        f"{i}.png,MRI,{('glioma', 'meningioma')[i % 2]},tumour type,p{i // 2}" for i in range(24)
    ]
    for i in range(24):
        Image.effect_noise((40, 40), 20 + i).save(tmp_path / f"mydata/{i}.png")
    header = "image,modality,label,label_group,patient_or_source_id"
    (tmp_path / "mydata/labels.csv").write_text("\n".join([header, *rows]))
    audits = []
    for words in (shlex.split(command), ["--config-dir", "my", "data=tumours"]):
        words = [word for word in words if word != "action=plan"]
        done = commands.medreason(*words, "action=audit", "tracking=none", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (written,) = tmp_path.glob("outputs/runs/audit-*/audit.json")
        audits.append(json.loads(written.read_text())["cells"])
        shutil.rmtree(tmp_path / "outputs")
    assert audits == 2 * [{"mri": {"disease": {"train": 16, "test": 8}}}]
