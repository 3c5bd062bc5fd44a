"""A judge loaded into this process: no endpoint, no key, one item after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers import AutoTokenizer as Tokenizer

from medreason.config import Model
from medreason.config.judge import Judge
from medreason.generation.parallel_requests import FailedError
from medreason.judging.rubric import Item, Verdict, read
from medreason.models import model_folder
from medreason.models.load import context_length, load_whole


def judge_of(judge: Judge) -> Callable[[Item], Verdict]:
    """A function that grades one item by greedy decoding, on the device of this process.

    The function raises FailedError for an item that does not fit the model's context with a reply
    of `judge.max_tokens`.

    Raises:
        ValueError: the model's folder cannot be loaded.
    """
    model_folder.check(judge.model, "judge.model")
    model_folder.check_hub(judge.model, key="judge.model")
    path = model_folder.resolve(judge.model)
    has_vision = "vision_config" in AutoConfig.from_pretrained(path).to_dict()
    auto_class = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    device = PartialState().device  # which `models.device.join` has chosen
    model: Any = load_whole(auto_class, path, dtype="auto").to(device).eval()  # pyright: ignore[reportArgumentType]
    tokenizer: Any = Tokenizer.from_pretrained(path)
    context = context_length(Model(name=judge.name, path=path))
    one_at_a_time = threading.Lock()

    @torch.inference_mode()
    def grade(item: Item) -> Verdict:
        turns = [
            {"role": "system", "content": item.instructions},
            {"role": "user", "content": item.question},
        ]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(str(text), return_tensors="pt").to(device)
        prompt_tokens = inputs["input_ids"].shape[1]
        # Positions beyond it were never trained, and verdicts there mean nothing.
        if context and prompt_tokens + judge.max_tokens > context:
            raise FailedError(
                f"longer than the judge's context of {context:,} tokens with judge.max_tokens="
                f"{judge.max_tokens}"
            )
        with one_at_a_time:
            output = model.generate(**inputs, max_new_tokens=judge.max_tokens, do_sample=False)
        completion_ids = output[0, prompt_tokens:]
        text = tokenizer.decode(completion_ids, skip_special_tokens=True)
        score, evaluation = read(text, item.top)
        return Verdict(score, evaluation, prompt_tokens, len(completion_ids))

    return grade
