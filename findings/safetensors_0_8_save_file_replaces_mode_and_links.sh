#!/usr/bin/env bash
# safetensors 0.8.0 writes files that their owner alone reads, whatever the umask, and replaces what a name points to: a file that
# was shared by its group is private after it is saved again, a symbolic link becomes a file of its own, a hard link is cut.
#
# Expected, and done by 0.7.0: mode 0644 under umask 022, the mode of a file that is there already kept, links written through.
#
# Why it matters: transformers, PEFT and diffusers save their weights by it. On a cluster whose group shares a folder of outputs, the
# others can list a new checkpoint and read its config, and get "Permission denied" on the weights; a folder whose weights are links
# into a store (as in caches, or made to spare space) is saved with the store left at the old weights, without a word.
#
# Output seen on 2026-11-28:
#   safetensors 0.7.0: new 0644, saved again 0664, symbolic link kept, its target has the new weights, hard link kept
#   safetensors 0.8.0: new 0600, saved again 0600, symbolic link replaced, its target has the old weights, hard link cut
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
cat > save.py <<'PY'
import os
import stat

import numpy as np
import safetensors
from safetensors.numpy import load_file, save, save_file

os.umask(0o022)
OLD, NEW = {"a": np.zeros(2, np.float32)}, {"a": np.ones(2, np.float32)}


def mode(name):
    return f"{stat.S_IMODE(os.stat(name).st_mode):04o}"


for name in ("shared", "store", "hard"):
    with open(name, "wb") as file:
        file.write(save(OLD))
os.chmod("shared", 0o664)
os.symlink("store", "link")
os.link("hard", "second name")
for name in ("new", "shared", "link", "hard"):
    save_file(NEW, name)
seen = (
    f"new {mode('new')}, saved again {mode('shared')}, symbolic link "
    f"{'kept' if os.path.islink('link') else 'replaced'}, its target has the "
    f"{'new' if load_file('store')['a'].all() else 'old'} weights, hard link "
    f"{'kept' if os.path.samefile('hard', 'second name') else 'cut'}"
)
print(f"safetensors {safetensors.__version__}: {seen}")
expected = {
    "0.7.0": "new 0644, saved again 0664, symbolic link kept, its target has the new weights, hard link kept",
    "0.8.0": "new 0600, saved again 0600, symbolic link replaced, its target has the old weights, hard link cut",
}
assert seen == expected[safetensors.__version__], "changed"
PY
for version in 0.7.0 0.8.0; do
    python3 -m venv "env-$version" && "env-$version/bin/pip" install --quiet safetensors==$version numpy==2.3.5
    mkdir "$version" && (cd "$version" && "../env-$version/bin/python" ../save.py)
done
