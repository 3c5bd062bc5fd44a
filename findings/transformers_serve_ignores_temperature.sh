#!/usr/bin/env bash
# transformers 5.23.0: `transformers serve` ignores `temperature` unless the model's folder turns sampling on, and `n`, `logprobs` and
# `response_format` always. Each request is answered with 200 OK.
#
# The server copies the model's generation config and sets its temperature; sampling stays off where `do_sample` is not true in
# generation_config.json, as in a model that was made from a config. The answers carry no sign of it. The server's log says once
# "generation flags are not valid and may be ignored" for the temperature, and one line for each of the other fields.
#
# Expected: different replies at temperature 2, as with vLLM or OpenAI; three choices for n=3; an error for what is not supported.
# Seen: eight equal replies; one choice; `logprobs` null. The same weights with "do_sample": true in the folder give other replies.
#
# Why it matters: self-consistency, pass@k and a judge's vote over samples are computed from copies of one greedy reply: an agreement
# of 100 %, whatever the model is worth.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0
#   model greedy: eight requests at temperature 2 give 1 different replies
#   model sampling: eight requests at temperature 2 give 8 different replies
#   n=3 gives 1 choice; logprobs=True gives None; response_format of JSON gives '-<[.HFE0'
#   [transformers] The following generation flags are not valid and may be ignored: ['temperature']. Set `TRANSFORMERS_VERBOSITY=info` ...
#   [transformers] Ignoring unsupported fields in the request: {'n'}
#   [transformers] Ignoring unsupported fields in the request: {'logprobs', 'top_logprobs'}
#   [transformers] Ignoring unsupported fields in the request: {'response_format'}
set -euo pipefail
folder=$(mktemp -d); server=; trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 \
    fastapi==0.165.0 uvicorn==0.54.0 openai==3.52.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" OMP_NUM_THREADS=1
cat > make.py <<'PY'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

bytes_only = Tokenizer(models.BPE())
bytes_only.pre_tokenizer, bytes_only.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
alphabet = [*(c for c in pre_tokenizers.ByteLevel.alphabet() if c.isascii()), "Ġ", "Ċ"]  # ASCII, space, line feed
bytes_only.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, pad_token=special[0], eos_token=special[2])
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
torch.manual_seed(0)
size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
model = Qwen2ForCausalLM(Qwen2Config(**size, **ids, max_position_embeddings=2048))
model.generation_config.suppress_tokens = list(range(len(special)))  # a reply of plain characters
for name, sample in (("greedy", None), ("sampling", True)):
    model.generation_config.do_sample = sample
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
PY
cat > ask.py <<'PY'
import sys

import openai
import transformers

print("transformers", transformers.__version__)
client = openai.OpenAI(base_url=f"http://localhost:{sys.argv[1]}/v1", api_key="none")


def choices(model, **more):
    messages = [{"role": "user", "content": "Which organ?"}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=8, **more).choices


different = {}
for model in ("greedy", "sampling"):
    different[model] = len({choices(model, temperature=2.0)[0].message.content for _ in range(8)})
    print(f"model {model}: eight requests at temperature 2 give {different[model]} different replies")
count = len(choices("sampling", temperature=2.0, n=3))
logprobs = choices("sampling", logprobs=True, top_logprobs=2)[0].logprobs
text = choices("greedy", response_format={"type": "json_object"})[0].message.content
print(f"n=3 gives {count} choice; logprobs=True gives {logprobs}; response_format of JSON gives {text!r}")
assert different["sampling"] > 1
assert different["greedy"] == 1, "changed: temperature is heeded"
assert count == 1 and logprobs is None and not text.startswith("{"), "changed"
PY
env/bin/python make.py 2>log.txt || { tail -5 log.txt; exit 1; }
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
env/bin/transformers serve --port "$port" --device cpu > log.txt 2>&1 & server=$!
for _ in $(seq 120); do
    env/bin/python -c "import urllib.request as r; r.urlopen('http://localhost:$port/health')" 2>/dev/null && break
    kill -0 "$server" || { tail -5 log.txt; exit 1; }
    sleep 1
done
env/bin/python ask.py "$port"
grep -E 'may be ignored|Ignoring' log.txt
