"""The example of another format in medreason/data/README.md works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

README = (Path(__file__).parents[2] / "medreason/data/README.md").read_text()


def test_one_module_and_one_yaml_file_are_a_data_set(tmp_path: Path) -> None:
    (module,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (options,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert 20 <= len(module.splitlines()) <= 35
    (tmp_path / "my_set.py").write_text(module)
    (tmp_path / "conf/data").mkdir(parents=True)
    (tmp_path / "conf/data/my_set.yaml").write_text(options)
    (tmp_path / "images").mkdir()
    row = {"text": "Fracture?", "choices": ["Yes", "No"], "right": 1}
    rows = [row | {"file": f"{i}.png"} for i in range(10)]
    wrong = [{"file": None}, {"right": "x"}, {"choices": [1, 2]}, {"text": None}, {"right": 9}]
    lines = [*rows, {"file": "1.png", "text": "Fracture?"}, *[rows[0] | w for w in wrong], 7]
    (tmp_path / "images/questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for i in range(10):
        Image.effect_noise((40, 40), 20 + i).save(tmp_path / f"images/{i}.png")
    words = ["--config-dir", "conf", "action=audit", "data=my_set", "data.root=images"]
    done = subprocess.run(
        [sys.executable, "-m", "medreason", *words, "tracking=none"],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("outputs/runs/audit-my_set-*/audit.json")
    report = json.loads(written.read_text())
    assert report["cells"] == {"xray": {"disease": {"train": 7, "test": 3}}}
    assert report["images"]["read"] == 10
    bad, *others = report["unparsed"]
    assert (bad["row"], "no 'choices'" in bad["reason"]) == (10, True)
    assert [other["row"] for other in others] == list(range(11, 17))
    reasons = ("image is None; needs", "TypeError", "option 1 is 1; needs a text")
    reasons += ("question is None", "is no letter of its 2 options", "TypeError")
    assert all(r in other["reason"] for r, other in zip(reasons, others, strict=True))
