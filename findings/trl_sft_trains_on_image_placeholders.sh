#!/usr/bin/env bash
# TRL 1.16.0: SFT of a vision-language model on conversations trains on the image's placeholders, and the loss it logs hides the text's.
#
# The collator of image data copies input_ids to labels and masks padding alone. Qwen2-VL's `<|image_pad|>` stands in the prompt once
# for each visual token, 196 times for an image of 384 x 384 pixels; the model is asked to predict each of them. They are nearly all
# labels of a short question, and easy: the mean loss falls at once, while the loss of the text may rise. `assistant_only_loss=True`
# or prompt-completion data with their default (`completion_only_loss`) leaves them out; data of `messages` and `images`, which TRL
# takes them too, does not.
#
# Output seen on 2026-11-28:
#   transformers 5.23.0 TRL 1.16.0
#   labels of a question: 211, of which <|image_pad|>: 196
#   step 0: loss 3.39, of the text alone 3.51
#   step 7: loss 0.77, of the text alone 4.10
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python3 -m venv env
env/bin/pip install --quiet uv==0.9.10
env/bin/uv pip install --quiet --python env/bin/python torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
export HF_HUB_OFFLINE=1
env/bin/python - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
import transformers
import trl
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS = ["system", "user", "assistant", "Which", "organ", "?", "The", "answer", "is", "lung", "liver", "brain", "heart", "kidney"]
vocabulary = {word: i for i, word in enumerate([*SPECIAL, "<unk>", *WORDS])}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.add_special_tokens(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
)
processor = Qwen2VLProcessor(
    Qwen2VLImageProcessor(),
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"),
    Qwen2VLVideoProcessor(),
    chat_template=TEMPLATE,
)


def example(organ: str) -> dict:
    turns = [("user", "Which organ ?"), ("assistant", f"The answer is {organ}")]
    return {"messages": [{"role": r, "content": t} for r, t in turns], "images": [Image.new("RGB", (384, 384))]}


collate = DataCollatorForVisionLanguageModeling(processor, max_length=None)
batch = collate([example(organ) for organ in WORDS[-4:]])
labels, ids = batch["labels"], batch["input_ids"]
pads = labels == vocabulary["<|image_pad|>"]
print("transformers", transformers.__version__, "TRL", trl.__version__)
print(f"labels of a question: {(labels[0] != -100).sum()}, of which <|image_pad|>: {pads[0].sum()}")

torch.manual_seed(0)
text = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
text |= {"num_key_value_heads": 1, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
tokens = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(8):
    output = model(**batch)
    if step in (0, 7):
        logp = output.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        print(f"step {step}: loss {output.loss.item():.2f}, of the text alone {-logp[~pads[:, 1:]].mean().item():.2f}")
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
assert (pads.sum(1) == 196).all(), "changed: labels hold no image tokens"
PY
