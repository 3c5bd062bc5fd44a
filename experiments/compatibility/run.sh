#!/usr/bin/env bash
# Folders of two earlier versions of transformers and PEFT load and answer here, our exports open there.
# bash run.sh, or bash run.sh 4.49.0 for the one version.
# Needs uv, the network and the environment of medreason, whose torch the others use, too.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
packages=$(python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

environment() {  # name, then versions of transformers, peft, tokenizers, huggingface-hub, accelerate
  uv venv -q -p "$(command -v python)" "$work/$1"
  uv pip install -q --python "$work/$1" --no-deps \
    "transformers==$2" "peft==$3" "tokenizers==$4" "huggingface-hub==$5" "accelerate==$6"
  echo "$packages" >"$("$work/$1/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/medreason.pth"
}
prompt=$(python -c "import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))['evaluate'])" \
  "$here/../../conf/prompt/think_parity.yaml")
versions=${*:-4.49.0 4.57.6}
for version in $versions; do
  [ "$version" = 4.49.0 ] && environment 4.49.0 4.49.0 0.14.0 0.21.4 0.36.0 1.4.0
  [ "$version" = 4.57.6 ] && environment 4.57.6 4.57.6 0.18.1 0.22.1 0.36.0 1.12.0
done
export HF_HUB_OFFLINE=1
python -m medreason action=export export.to="$work/tiny" outputs="$work/outputs"

for version in $versions; do
  other="$work/$version/bin/python $here/other_version.py"
  $other make "$work/made/$version" "$work/tiny" "$prompt"
  echo "loaded here: made by | folder | greatest difference of logits | answer"
  python "$here/this_version.py" load "$work/made/$version"
  python "$here/this_version.py" export "$work/made/$version" "$work/exports/$version"
  layout="since_4_52"
  [ "$version" = 4.49.0 ] && layout="before_4_52"
  echo "opened there: by | export | tensors lost | difference | with its own processor"
  for family in qwen2_vl qwen2_5_vl; do
    for name in model merged "adapter_$layout" "own_$layout"; do
      target=$work/exports/$version/$family/$name
      $other open "$target" "$target.safetensors" "$prompt"
    done
  done
done
