#!/usr/bin/env bash
# Every GPU row of README.md with the 2B architecture and random weights: does it work, how much memory, how fast.
#
#     experiments/benchmarks/gpu.sh FOLDER [checks] [memory] [speed]     # all three, about ten minutes on one H100 or H200
#     MODEL=tiny HARDWARE=cpu TOKENS=2,4 LONG=6 SIZE=56 experiments/benchmarks/gpu.sh FOLDER    # the same at a size of minutes
#
# Output goes to FOLDER/log, too, JSON to FOLDER/outputs. A step that fails or takes too long is reported, and the next one runs.
set -uo pipefail
folder=$(realpath -m "$1")
shift
parts=${*:-checks memory speed}
PYTHON=${PYTHON:-python3} MODEL=${MODEL:-random_2b} HARDWARE=${HARDWARE:-gpu}
TOKENS=${TOKENS:-16,128,256} LONG=${LONG:-512} SIZE=${SIZE:-384}
export HF_HUB_OFFLINE=1
mkdir -p "$folder"
exec > >(tee -a "$folder/log") 2>&1

step() { # name, seconds, command ...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    printf '\n## %s\n' "$name"
    timeout "$limit" "$@" || echo "FAILED with $?: $name"
    echo "($((SECONDS - began)) s)"
}

bench() { # name, override ...
    step "$1" 240 "$PYTHON" -m medreason action=bench model=qwen2_vl_2b model.path="$folder/weights" model.max_pixels=153664 \
        data.train_images=4 data.test_images=1 hardware="$HARDWARE" outputs="$folder/outputs/${1// /-}" "${@:2}"
}

git log -1 --format='commit %H, %cd' 2> /dev/null
date
[ "$HARDWARE" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$PYTHON" -c 'import torch, transformers, trl; print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__)'

# Saved once: random numbers for two billion weights take longer to draw than to read.
[ -e "$folder/weights/config.json" ] || step "weights of $MODEL" 240 "$PYTHON" - "$MODEL" "$folder/weights" << 'SAVE'
import sys

from hydra import compose, initialize_config_dir

from medreason import config as configuration
from medreason.config import CONF
from medreason.models.load import load_model, load_processor

with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
    overrides = [f"model={sys.argv[1]}", "model.weights=random", "action=bench", "hardware.precision=bfloat16"]
    config = configuration.load(compose("config", overrides=overrides))
load_model(config.model, config.hardware).save_pretrained(sys.argv[2])
load_processor(config.model).save_pretrained(sys.argv[2])
SAVE

capped() { [ "$HARDWARE" = cpu ] || echo "hardware.memory_limit_gb=$1"; }

for part in $parts; do
    case $part in
        checks)
            step "tests that need a GPU" 180 "$PYTHON" -m pytest -q -o addopts= -p no:cacheprovider -m gpu tests
            ;;
        memory)
            EIGHT=hardware.optimizer_states=8bit
            bench "full GRPO under 40 GB" bench.what=memory method=grpo "$EIGHT" $(capped 40)
            bench "LoRA-RARL under 16 GB" bench.what=memory method=rarl $(capped 16)
            bench "QLoRA-RARL under 10 GB" bench.what=memory method=rarl adapter=qlora "$EIGHT" $(capped 10)
            bench "SFT" bench.what=memory method=sft
            ;;
        speed)
            ONE="method=grpo method.prompts_per_step=1 hardware.per_device_prompts=1 bench.image_size=$SIZE"
            FEW="$ONE bench.repeats=1 evaluation.controls=[]"
            bench "full G8" $ONE method.trl.num_generations=8 "bench.tokens=[$TOKENS]" bench.repeats=3
            bench "LoRA G8" $FEW method.trl.num_generations=8 "bench.tokens=[$TOKENS]" adapter=lora_r8
            bench "full G4" $FEW method.trl.num_generations=4 "bench.tokens=[$TOKENS]"
            [ "$HARDWARE" = cpu ] || bench "full G8 without CUDA graphs" $FEW method.trl.num_generations=8 \
                "bench.tokens=[${TOKENS##*,}]" hardware.cuda_graphs=false
            bench "full G8 long" $FEW method.trl.num_generations=8 "bench.tokens=[$LONG]"
            ;;
    esac
done
