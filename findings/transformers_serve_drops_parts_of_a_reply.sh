#!/usr/bin/env bash
# transformers 5.23.0: `transformers serve` drops parts of a reply that holds <think> tags, for a plain Qwen2 model too.
#
# The server parses each reply of some architectures (Qwen2, Qwen2-VL, Qwen3 and others) with a response template of its own, whether
# or not the model or its chat template knows of thinking. It keeps one region of each kind, and the last one wins:
#   text <think>a</think> text <think>b</think> text    the first two texts and `a` are in neither `content` nor `reasoning_content`
#   <think>a <answer>A</answer>  (never closed)         `content` is empty; the answer is in `reasoning_content`, with "<|im_end|>" as text
# `usage.completion_tokens` counts all of it; the answer is 200 OK and nothing is logged. The same request with `stream=True` gives all
# texts and thoughts, `model.generate` the reply as it is.
#
# Expected: the reply, or its two parts, without loss, streamed or not.
#
# Why it matters: models trained by GRPO to think in tags close them badly or think twice. A format reward or an accuracy computed
# over this server differs from one computed on the model, and the text that would show why is not in the answer.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0
#   generate <think>dark</think><answer>A</answer>
#     content, reasoning_content ('<answer>A</answer>', 'dark'), 38 tokens
#     streamed ('<answer>A</answer>', 'dark')
#   generate I see. <think>dark</think><answer>A</answer><think>sure</think> Done.
#     content, reasoning_content ('Done.', 'sure'), 70 tokens
#     streamed ('I see. <answer>A</answer> Done.', 'darksure')
#   generate <think>dark <answer>A</answer>
#     content, reasoning_content ('', 'dark <answer>A</answer><|im_end|>'), 31 tokens
#     streamed ('', 'dark <answer>A</answer><|im_end|>')
set -euo pipefail
folder=$(mktemp -d); server=; trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 \
    fastapi==0.165.0 uvicorn==0.54.0 openai==3.52.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" OMP_NUM_THREADS=1
cat > train.py <<'PY'
# A tiny Qwen2 that has learnt one reply a question by heart, with a byte-level tokenizer and Qwen2's turns.
import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

REPLIES = {
    "One?": "<think>dark</think><answer>A</answer>",
    "Two?": "I see. <think>dark</think><answer>A</answer><think>sure</think> Done.",
    "Three?": "<think>dark <answer>A</answer>",
}
bytes_only = Tokenizer(models.BPE())
bytes_only.pre_tokenizer, bytes_only.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
bytes_only.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, pad_token=special[0], eos_token=special[2])
tokenizer.chat_template = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
torch.manual_seed(0)
size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
model = Qwen2ForCausalLM(Qwen2Config(**size, **ids, max_position_embeddings=2048))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
prompts = {
    question: tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )["input_ids"]
    for question in REPLIES
}
for _ in range(300):
    worst = 0.0
    for question, reply in REPLIES.items():
        row = torch.cat([prompts[question], tokenizer(reply + special[2], return_tensors="pt")["input_ids"]], 1)
        labels = row.clone()
        labels[:, : prompts[question].shape[1]] = -100
        loss = model(input_ids=row, labels=labels).loss
        loss.backward()
        worst = max(worst, loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if worst < 0.01:
        break
for question, prompt in prompts.items():
    new = model.generate(prompt, max_new_tokens=100, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == REPLIES[question]
model.save_pretrained("model")
tokenizer.save_pretrained("model")
with open("replies.json", "w") as file:
    json.dump(REPLIES, file)
PY
cat > ask.py <<'PY'
import json
import sys

import openai
import transformers

print("transformers", transformers.__version__)
client = openai.OpenAI(base_url=f"http://localhost:{sys.argv[1]}/v1", api_key="none")
SEEN = {  # content and reasoning_content, whole and streamed
    "One?": (("<answer>A</answer>", "dark"), ("<answer>A</answer>", "dark")),
    "Two?": (("Done.", "sure"), ("I see. <answer>A</answer> Done.", "darksure")),
    "Three?": (("", "dark <answer>A</answer><|im_end|>"), ("", "dark <answer>A</answer><|im_end|>")),
}
with open("replies.json") as file:
    replies = json.load(file)
for question, reply in replies.items():
    asked = {"model": "model", "messages": [{"role": "user", "content": question}]}
    response = client.chat.completions.create(**asked)
    message = response.choices[0].message
    whole = message.content, getattr(message, "reasoning_content", "")
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    parts = [[getattr(delta, key, None) or "" for delta in deltas] for key in ("content", "reasoning_content")]
    streamed = "".join(parts[0]), "".join(parts[1])
    print(f"generate {reply}\n  content, reasoning_content {whole}, {response.usage.completion_tokens} tokens\n  streamed {streamed}")
    assert (whole, streamed) == SEEN[question], "changed"
PY
env/bin/python train.py 2>log.txt || { tail -5 log.txt; exit 1; }
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
env/bin/transformers serve model --port "$port" --device cpu > log.txt 2>&1 & server=$!
for _ in $(seq 120); do
    env/bin/python -c "import urllib.request as r; r.urlopen('http://localhost:$port/health')" 2>/dev/null && break
    kill -0 "$server" || { tail -5 log.txt; exit 1; }
    sleep 1
done
env/bin/python ask.py "$port"
