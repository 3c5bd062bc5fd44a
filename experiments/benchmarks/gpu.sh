#!/usr/bin/env bash
# For a GPU that is at hand for a quarter of an hour: does all of it work there, then how fast is the 2B and how much memory does it take.
#
#     experiments/benchmarks/gpu.sh check FOLDER      # under 4 minutes, with models of seconds
#     experiments/benchmarks/gpu.sh measure FOLDER    # under 8 minutes: every GPU row of README.md, the 2B with random weights
#     ROWS='under|SFT' experiments/benchmarks/gpu.sh measure FOLDER    # of these names alone (a regular expression)
#     HARDWARE=cpu MODEL=tiny TOKENS=2,4 LONG=6 SIZE=56 experiments/benchmarks/gpu.sh measure FOLDER    # a rehearsal, as of check
#
# One line a check; what it printed is in FOLDER/logs, what it wrote in FOLDER/outputs. One that fails or takes too long is reported, and the
# next one runs; when the time of the part (BUDGET seconds) is over, the others are skipped. Exits with 1 unless all are ok.
set -uo pipefail
part=${1:?check or measure} folder=$(realpath -m "${2:?a folder for logs and outputs}")
PYTHON=${PYTHON:-python3} MODEL=${MODEL:-random_2b} HARDWARE=${HARDWARE:-gpu}
TOKENS=${TOKENS:-16,128,256} LONG=${LONG:-512} SIZE=${SIZE:-384}
case $part in
    check) BUDGET=${BUDGET:-230} ;;
    measure) BUDGET=${BUDGET:-470} ;;
    *) echo "no part $part; there are check and measure" >&2 && exit 2 ;;
esac
patience=1
[ "$HARDWARE" != cpu ] || BUDGET=3600 patience=5
export HF_HUB_OFFLINE=1
mkdir -p "$folder/logs"
number=0 failed=0 expected=

check() { # name, seconds, command ...
    local name=$1 limit=$(($2 * patience)) left=$((BUDGET - SECONDS)) began=$SECONDS status verdict=ok detail log
    shift 2
    [[ $name =~ ${ROWS:-.} ]] || return 0
    number=$((number + 1))
    log=$folder/logs/$part-$(printf %02d "$number")-${name//[^A-Za-z0-9]/-}.log
    if ((left < 2)); then
        failed=1 && printf 'SKIP    0 s  %s: the %d s of this part are over\n' "$name" "$BUDGET"
        return
    fi
    ((limit < left)) || limit=$left
    timeout --kill-after=5 "$limit" "$@" > "$log" 2>&1
    status=$?
    detail=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr -s ' ' | cut -c 1-160)
    if [ -n "$expected" ]; then # it must fail, with these words
        { ((status)) && ((status != 124)) && grep -q "$expected" "$log"; } || verdict=FAIL
    elif ((status == 124 || status == 137)); then
        verdict=FAIL detail="longer than $limit s"
    elif ((status)); then
        verdict=FAIL
    fi
    [ $verdict = ok ] || failed=1
    printf '%-4s %4d s  %s: %s\n' $verdict $((SECONDS - began)) "$name" "$detail"
    # Of a measurement of speed its table.
    [ "$part" != measure ] || grep -E '^(rollout|update|step|evaluation) ' "$log" | sed 's/^/             /'
}

medreason() { # name, seconds, override ...
    check "$1" "$2" "$PYTHON" -m medreason outputs="$folder/outputs/${1// /-}" hardware="$HARDWARE" data.test_images=1 "${@:3}"
}

train() { # name, override ...
    medreason "$1" 60 tracking=none modality=ct 'evaluation.modalities=[ct]' evaluation.max_new_tokens=16 data.train_images=2 \
        method.trl.max_steps=2 method.prompts_per_step=4 "${@:2}"
}

bench() { # name, override ...
    medreason "$1" 150 action=bench model=qwen2_vl_2b model.path="$folder/weights" model.max_pixels=153664 data.train_images=4 "${@:2}"
}

capped() { [ "$HARDWARE" = cpu ] || echo "hardware.memory_limit_gb=$1"; }

VERSIONS='import torch, transformers, trl; gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__, gpu or "no GPU")'

EQUALITY='import json, sys
equality = json.load(open(sys.argv[1]))["equality"]
print(equality)
sys.exit(not (equality["logps_max_abs"] < 1e-3 and equality["grad_rel"] < 1e-3 and equality["answers"]))'

# Saved once, drawn on the GPU: a CPU draws two billion random numbers in minutes.
WEIGHTS='import sys
import torch
from hydra import compose, initialize_config_dir
from medreason import config as configuration
from medreason.config import CONF
from medreason.models.load import load_model, load_processor
with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
    overrides = [f"model={sys.argv[1]}", "model.weights=random", "action=bench", "hardware.precision=bfloat16"]
    config = configuration.load(compose("config", overrides=overrides))
with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model = load_model(config.model, config.hardware)
model.save_pretrained(sys.argv[2])
load_processor(config.model).save_pretrained(sys.argv[2])'

SHORT=method.trl.max_completion_length=16 EIGHT=hardware.optimizer_states=8bit
GPU_TESTS=$(grep -rl 'mark\.gpu' tests)
git log -1 --format='commit %H, %cd' 2> /dev/null
check "versions" 60 "$PYTHON" -c "$VERSIONS"

if [ "$part" = check ]; then
    check "tests that need a GPU" 90 "$PYTHON" -m pytest -q -o addopts= -p no:cacheprovider -m gpu $GPU_TESTS
    train "full GRPO" method=grpo model=tiny $SHORT
    train "SFT" method=sft model=tiny
    train "LoRA-RARL" method=rarl model=tiny $SHORT
    train "QLoRA-RARL" method=rarl adapter=qlora model=tiny $SHORT $EIGHT
    medreason "grouped against TRL" 60 action=bench model=random_33m method=grpo prompt=no_think data.train_images=1 hardware.precision=float32 \
        hardware.per_device_prompts=1 method.prompts_per_step=1 'bench.tokens=[4]' bench.repeats=1 bench.image_size=56
    check "equal log-probabilities and gradients" 10 "$PYTHON" -c "$EQUALITY" \
        "$folder/outputs/grouped-against-TRL/benchmarks/random_33m/bench.json"
    if [ "$HARDWARE" != cpu ]; then
        expected='out of memory'
        medreason "a memory limit that is too small stops training" 60 action=bench bench.what=memory model=random_33m method=grpo \
            data.train_images=1 hardware.memory_limit_gb=0.3
        expected=
    fi
else
    [ -e "$folder/weights/config.json" ] || check "weights of $MODEL" 150 "$PYTHON" -c "$WEIGHTS" "$MODEL" "$folder/weights"
    bench "full GRPO under 40 GB" bench.what=memory method=grpo $EIGHT $(capped 40)
    bench "LoRA-RARL under 16 GB" bench.what=memory method=rarl $(capped 16)
    bench "QLoRA-RARL under 10 GB" bench.what=memory method=rarl adapter=qlora $EIGHT $(capped 10)
    ONE="method=grpo method.prompts_per_step=1 hardware.per_device_prompts=1 bench.image_size=$SIZE bench.repeats=1"
    FEW="$ONE evaluation.controls=[] bench.tokens=[${TOKENS##*,}]"
    bench "full G8" $ONE method.trl.num_generations=8 "bench.tokens=[$TOKENS]"
    bench "LoRA G8" $FEW method.trl.num_generations=8 adapter=lora_r8
    bench "full G4" $FEW method.trl.num_generations=4
    [ "$HARDWARE" = cpu ] || bench "full G8 without CUDA graphs" $FEW method.trl.num_generations=8 hardware.cuda_graphs=false
    bench "full G8 long" $FEW method.trl.num_generations=8 "bench.tokens=[$LONG]"
    bench "SFT" bench.what=memory method=sft
fi
exit $failed
