"""With another version of transformers and peft: make small models and adapters, or open exports.

python other_version.py make FOLDER PROCESSOR PROMPT   # models, adapters, inputs, logits, answers
python other_version.py open EXPORT INPUTS PROMPT      # greatest difference to the logits in INPUTS

PROMPT has {question}: that of Med-R1's own evaluation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

TEXT = {
    **{"vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 500_000.0},
}
"""Where a value is not the default, an export has to carry it."""
TOKENS = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
FAMILIES = {
    "qwen2_vl": (
        "Qwen2VL",
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        {"tie_word_embeddings": True},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            **{"depth": 2, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2},
            **{"intermediate_size": 64, "fullatt_block_indexes": [1], "window_size": 56},
        },
        {"tie_word_embeddings": False},
    ),
}
QUESTION = "Which? A)CT, B)MRI"
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
NEW_TOKENS = 12
SHARD = "600KB"
"""So that a model is several files, as the released ones are."""
ADAPTER = {"r": 4, "target_modules": ["q_proj", "v_proj", "qkv"]}


def inputs(processor: transformers.ProcessorMixin, prompt: str) -> dict[str, torch.Tensor]:
    """A question about an image of 90 x 120 pixels."""
    question = prompt.replace("{question}", QUESTION)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return dict(processor(text=[text], images=[Image.fromarray(PIXELS)], return_tensors="pt"))


@torch.no_grad()
def logits(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return model.eval()(**tensors).logits


def answer(
    model: torch.nn.Module, processor: transformers.ProcessorMixin, tensors: dict[str, torch.Tensor]
) -> str:
    """The greedy completion, without the tokens that medreason bans, ended by either end token."""
    tokens = processor.tokenizer.convert_tokens_to_ids
    settings = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "eos_token_id": [tokens("<|im_end|>"), tokens("<|endoftext|>")],
        "pad_token_id": tokens("<|endoftext|>"),
        "suppress_tokens": [i for name, i in processor.tokenizer.get_added_vocab().items()
                            if name.startswith("<|vision") or name.endswith("_pad|>")],
    }  # fmt: skip
    ids = model.eval().generate(**tensors, **settings)[0, tensors["input_ids"].shape[1] :]
    return processor.tokenizer.decode(ids, skip_special_tokens=True)


def make(folder: Path, processor_folder: str, prompt: str) -> None:
    for name, (prefix, vision, more) in FAMILIES.items():
        torch.manual_seed(0)
        processor = getattr(transformers, f"{prefix}Processor").from_pretrained(processor_folder)
        ids = {key: processor.tokenizer.convert_tokens_to_ids(t) for key, t in TOKENS.items()}
        config = getattr(transformers, f"{prefix}Config")(
            **TEXT, **ids, **more, vision_config=vision
        )
        model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
        target, tensors = folder / name, inputs(processor, prompt)
        model.save_pretrained(target / "model", max_shard_size=SHARD)
        processor.save_pretrained(target / "model")
        plain = logits(model, tensors)
        answers = {"model": answer(model, processor, tensors)}
        model.name_or_path = str(target / "model")
        model = peft.get_peft_model(model, peft.LoraConfig(**ADAPTER))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(target / "adapter")
        processor.save_pretrained(target / "adapter")
        adapted = logits(model, tensors)
        answers["adapter"] = answer(model, processor, tensors)
        (target / "answers.json").write_text(json.dumps(answers))
        Image.fromarray(PIXELS).save(target / "image.png")
        tensors.pop("mm_token_type_ids", None)
        save_file({**tensors, "model": plain, "adapter": adapted}, target / "logits.safetensors")


def difference(export: Path, expected: Path, prompt: str) -> None:
    """Of logits of one input, and of those of the image as this version's processor reads it."""
    tensors = load_file(expected)
    answer = tensors.pop("logits")
    processor = transformers.AutoProcessor.from_pretrained(export)
    from_image = inputs(processor, prompt)
    assert torch.equal(from_image["input_ids"], tensors["input_ids"]), "other tokens"
    if (export / "adapter_config.json").exists():
        base = peft.PeftConfig.from_pretrained(export).base_model_name_or_path
        model, info = whole(base)
        model = peft.PeftModel.from_pretrained(model, export)
        names = peft.utils.get_peft_model_state_dict(model).keys()
        info["unexpected_keys"] = names ^ load_file(export / "adapter_model.safetensors").keys()
    else:
        model, info = whole(export)
    lost = [*info["missing_keys"], *info["unexpected_keys"]]
    same_pixels, own_pixels = (
        (logits(model, rows) - answer).abs().max().item() for rows in (tensors, from_image)
    )
    sys.stdout.write(
        f"| {transformers.__version__} / {peft.__version__} | {'/'.join(export.parts[-3:])} | "
        f"{len(lost)} | {same_pixels:.1e} | {own_pixels:.1e} |\n"
    )
    sys.exit(bool(lost) or same_pixels > 1e-4)


def whole(path: str | Path) -> tuple[torch.nn.Module, dict[str, object]]:
    return transformers.AutoModelForImageTextToText.from_pretrained(
        path, torch_dtype=torch.float32, output_loading_info=True
    )


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]).resolve(), *sys.argv[3:])
    else:
        difference(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
