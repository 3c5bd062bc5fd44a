#!/usr/bin/env bash
# transformers 5.23.0: `transformers serve` puts the prompt into the reply of a Qwen2 model whose chat template is not Qwen's own.
#
# For some architectures, Qwen2 among them, the server parses each reply with a response template that looks for
# "<|im_start|>assistant\n" in the prompt. Where the chat template writes other turns, as one given to a base model may, the parser takes
# the whole prompt for the beginning of the reply: `content` holds it, and thoughts that the prompt shows as an example become
# `reasoning_content`. Streamed replies begin with the prompt too. Nothing of this is in the log.
#
# Expected: `content` as from `model.generate`, whatever the turns look like.
#
# Why it matters: a parser that looks for the first letter or the first <answer> finds the prompt's options or its example of the
# format, and gives every reply the same grade.
#
# Output seen on 2026-11-29:
#   transformers 5.23.0
#   question 'Reply as <think>why</think><answer>A</answer>. Which organ?'
#   qwen turns: generate '!@ +^1', streamed '!@ +^1',
#     content '!@ +^1', reasoning_content None
#   other turns: generate 'LX4.p:', streamed '<|User|>Reply as <answer>A</answer>. Which organ?<|Assistant|>LX4.p:',
#     content '<answer>A</answer>. Which organ?<|Assistant|>LX4.p:', reasoning_content 'why'
set -euo pipefail
folder=$(mktemp -d); server=; trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT; cd "$folder"
uv venv --quiet env
uv pip install --quiet --python env/bin/python torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6 \
    fastapi==0.165.0 uvicorn==0.54.0 openai==3.52.0
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home" OMP_NUM_THREADS=1
cat > make.py <<'PY'
# One random Qwen2 under two chat templates, and what generate answers to the question with each.
import json
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

bytes_only = Tokenizer(models.BPE())
bytes_only.pre_tokenizer, bytes_only.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>"]
alphabet = [*(c for c in pre_tokenizers.ByteLevel.alphabet() if c.isascii()), "Ġ", "Ċ"]  # ASCII, space, line feed
bytes_only.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, pad_token=special[0], eos_token=special[2])
torch.manual_seed(0)
size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
model = Qwen2ForCausalLM(Qwen2Config(**size, **ids, max_position_embeddings=2048))
model.generation_config.suppress_tokens = list(range(len(special)))  # a reply of plain characters
TEMPLATES = {
    "qwen": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}",
    "other": "{% for m in messages %}<|User|>{{ m.content }}{% endfor %}<|Assistant|>",
}
replies = {}
for name, template in TEMPLATES.items():
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": sys.argv[1]}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    replies[name] = tokenizer.decode(new, skip_special_tokens=True)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
with open("replies.json", "w") as file:
    json.dump(replies, file)
PY
cat > ask.py <<'PY'
import json
import sys

import openai
import transformers

print("transformers", transformers.__version__)
port, question = sys.argv[1:]
MIXED = "<answer>A</answer>. Which organ?<|Assistant|>"
client = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none")
print(f"question {question!r}")
with open("replies.json") as file:
    replies = json.load(file)
for model, reply in replies.items():
    asked = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 6}
    message = client.chat.completions.create(**asked).choices[0].message
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked, stream=True))
    reasoning = getattr(message, "reasoning_content", None)
    print(f"{model} turns: generate {reply!r}, streamed {streamed!r},")
    print(f"  content {message.content!r}, reasoning_content {reasoning!r}")
    if model == "qwen":
        assert message.content == streamed == reply and reasoning is None
    else:
        assert streamed == "<|User|>Reply as " + MIXED + reply, "changed"
        assert message.content == MIXED + reply and reasoning == "why", "changed"
PY
question='Reply as <think>why</think><answer>A</answer>. Which organ?'
env/bin/python make.py "$question" 2>log.txt || { tail -5 log.txt; exit 1; }
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
env/bin/transformers serve --port "$port" --device cpu > log.txt 2>&1 & server=$!
for _ in $(seq 120); do
    env/bin/python -c "import urllib.request as r; r.urlopen('http://localhost:$port/health')" 2>/dev/null && break
    kill -0 "$server" || { tail -5 log.txt; exit 1; }
    sleep 1
done
env/bin/python ask.py "$port" "$question"
