"""GRPO in which a question's completions share its image and its prompt, on TRL's trainer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.data_utils import prepare_multimodal_messages
from trl.models.utils import unwrap_model_for_generation

from medreason.training import groups
from medreason.training.questions import OncePerQuestion, Questions, by_question, by_row, of_rows
from medreason.training.rollout import not_honoured, prompt_positions, rollout

_log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Of the mean difference between shared and plain log-probabilities, where rounding makes it."""


class GroupedGRPOTrainer(GRPOTrainer):
    """TRL 1.16's trainer; log-probabilities, losses and gradients are its own to rounding.

    Overrides: `_generate_and_score_completions` (the processor sees a question once; the batch
    goes on question by question, so that TRL's shuffle and its cut keep groups whole),
    `_generate_single_turn` (decoding), `_get_per_token_logps_and_entropies` (one sequence a
    question) and `_compute_loss` (back to TRL's rows; groups without a gradient are left out).

    Completions are drawn with dropout off, which TRL leaves on. In the update a question's
    completions see one dropout mask over their prompt, where TRL draws one for each copy.

    `fallback` says what becomes of a model or a setting that does not allow this: `error`, or
    `plain`, TRL's way with a warning.
    """

    # TRL leaves these open.
    accelerator: Any
    args: Any
    model: Any
    num_generations: Any
    processing_class: Any

    def __init__(self, *args: Any, fallback: str, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._fallback = fallback
        self._shares = True
        self._compared = False
        self._seeds: list[str] = []
        self._idle: Tensor | None = None
        if reasons := self._hindrances():
            self._fall_back("; ".join(reasons))

    def _hindrances(self) -> list[str]:
        """Why this run cannot share, as far as settings tell."""
        model, rows = _base(self.model), self.args.per_device_train_batch_size
        layers = getattr(model.config.get_text_config(), "layer_types", None) or []
        attention = model.config._attn_implementation
        other_engine = self.use_vllm or self.use_transformers_continuous_batching
        more = {} if other_engine else not_honoured(self.generation_config)
        mrope = hasattr(getattr(model, "model", None), "get_rope_index")
        takes = inspect.signature(type(model).forward).parameters
        hindrances = {
            f"{rows} rows a device cut groups of {self.num_generations}": rows
            % self.num_generations,
            f"{type(model).__name__} takes no mRoPE positions": not mrope
            or "position_ids" not in takes,
            f"attention={attention!r} takes no mask": attention not in ("sdpa", "eager"),
            "sliding-window attention": any(kind != "full_attention" for kind in layers),
            "vLLM or continuous batching": other_engine,
            "tools or a rollout function": self.tools or self.rollout_func is not None,
            "pad_to_multiple_of": self.pad_to_multiple_of is not None,
            "a mixture of experts": self.aux_loss_enabled,
            f"generation with {more}": more,
        }
        return [reason for reason, hinders in hindrances.items() if hinders]

    def _fall_back(self, reason: str) -> None:
        if self._fallback == "error":
            raise ValueError(
                f"rollout=grouped cannot be used: {reason}; choose rollout=hf, or let "
                "rollout.fallback=plain do so where it must"
            )
        _log.warning("rollout=grouped cannot be used: %s; going on as rollout=hf", reason)
        self._shares = False

    def _compare(self, row: dict[str, Any]) -> None:
        """Before the first update: are shared log-probabilities those of TRL, for one question?

        The completions repeat the prompt's end. A kernel that ignores the mask would let the
        second read the first, and one that ignores the positions would see it further away.
        """
        if row.get("image") is None:
            return self._fall_back("a question without an image")
        prompt = prepare_multimodal_messages(row["prompt"], images=[row["image"]])
        once = OncePerQuestion(self.processing_class, 3)
        once.apply_chat_template(
            [prompt] * 3, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        inputs = {k: v.to(self.accelerator.device) for k, v in once.inputs().items()}
        ends = inputs["input_ids"][:, -4:].expand(3, -1)
        kept = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], device=ends.device)
        ids = torch.cat([inputs["input_ids"].expand(3, -1), ends], dim=1)
        mask = torch.cat([torch.ones_like(ids[:, :-4]), kept], dim=1)
        types = nn.functional.pad(inputs["mm_token_type_ids"].expand(3, -1), (0, 4))
        images = {"mm_token_type_ids": types, "num_images": [1] * 3}
        pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
        self.model.eval()
        with torch.no_grad():
            theirs, _, _ = super()._get_per_token_logps_and_entropies(
                self.model,
                *(ids, mask, 4),
                pixel_values=pixels.repeat(3, 1),
                image_grid_thw=grid.repeat(3, 1),
                **images,
            )
            one = of_rows(ids, mask, 4, 3, pixel_values=pixels, image_grid_thw=grid, **images)
            ours, _ = self._shared_logps(self.model, one, [0])
        self.model.train()
        apart = (ours.flatten(0, 1) - theirs)[kept.bool()].abs().float()
        worst = self.accelerator.gather(apart.mean()).max().item()
        allowed = TOLERANCE.get(torch.bfloat16 if self.args.bf16 else self.model.dtype, 0.25)
        self._compared = True
        if not worst <= allowed:
            self._fall_back(
                f"log-probabilities of one question are {worst:.2g} apart from TRL's, more than "
                f"{allowed:.2g}; the attention of {type(_base(self.model)).__name__} does not "
                "follow mask or positions"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._shares and self.model.training and not self._compared:
            self._compare(inputs[0])
        if not self._shares or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        step, size = self.state.global_step, self.num_generations
        self._seeds = [f"{self.args.seed}:{step}:{row['sample']}" for row in inputs[::size]]
        processor = self.processing_class
        self.processing_class = OncePerQuestion(processor, size)
        try:
            questions = by_question(super()._generate_and_score_completions(inputs), size)
        finally:
            self.processing_class = processor
        skipped = self.accelerator.gather(self._without_gradient(questions["advantages"]).sum())
        self._metrics["train"]["skipped_groups"].append(skipped.sum().item())
        return questions

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,  # noqa: ANN401
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], Any]:
        once = self.processing_class
        if not isinstance(once, OncePerQuestion):
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            model.eval()
            found = rollout(
                model,
                {k: v.to(self.accelerator.device) for k, v in once.inputs().items()},
                completions=num_generations,
                settings=self.generation_config,
                seeds=self._seeds,
            )
            model.train()
        # TRL takes sampling log-probabilities from vLLM alone; none leaves the loss as it is.
        return [completion.ids for group in found for completion in group], None

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **inputs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if not self._shares or not self.model.training:
            return super()._get_per_token_logps_and_entropies(
                model,
                *(input_ids, attention_mask, logits_to_keep, batch_size),
                *(compute_entropy, compute_aux_loss),
                **inputs,
            )
        size = self.num_generations
        images = {k: v for k, v in inputs.items() if v is not None}
        questions = of_rows(input_ids, attention_mask, logits_to_keep, size, **images)
        idle = [False] * len(questions) if self._idle is None else self._idle.tolist()
        busy = [i for i in range(len(questions)) if not idle[i]]
        logps = torch.zeros(questions.completion_ids.shape, device=input_ids.device)
        entropies = torch.full_like(logps, torch.nan)
        at_once = max((batch_size or len(input_ids)) // size, 1)
        for chosen in (busy[i : i + at_once] for i in range(0, len(busy), at_once)):
            logps[chosen], found = self._shared_logps(model, questions, chosen)
            if compute_entropy:
                entropies[chosen] = found
        if not busy:  # zero, and a graph for backward
            logps = logps + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        elif any(idle):
            # Not computed: the logged mean is to be that of the groups trained on.
            mean = entropies[busy][questions.completion_mask[busy].bool()].mean().detach()
            entropies = entropies.nan_to_num(nan=mean.item())
        return logps.flatten(0, 1), entropies.flatten(0, 1) if compute_entropy else None, None

    def _shared_logps(
        self, model: nn.Module, questions: Questions, chosen: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies), (questions, completions, completion tokens) both."""
        prompt = questions.prompts(chosen)
        packed = groups.pack(
            prompt["input_ids"],
            prompt["attention_mask"],
            prompt_positions(self.accelerator.unwrap_model(model), prompt),
            questions.completion_ids[chosen],
            questions.completion_mask[chosen],
        )
        visible = packed.visible
        if _base(self.model).config._attn_implementation == "eager":
            visible = groups.additive(visible, self.model.dtype)
        with self.accelerator.autocast():
            outputs = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                attention_mask=visible,
                pixel_values=prompt["pixel_values"],
                image_grid_thw=prompt["image_grid_thw"],
                shift_labels=packed.labels,
                fused_lm_head=True,  # TRL's own head: temperature, precision and memory are its
            )
        entropies = outputs.log_probs if outputs.entropy is None else outputs.entropy
        return (
            groups.unpack(outputs.log_probs.float(), packed),
            groups.unpack(entropies.float(), packed),
        )

    def _without_gradient(self, advantages: Tensor) -> Tensor:
        """(questions) of advantages (questions, completions): those that move no weight."""
        more_acts = (
            self.beta != 0.0
            or self._entropy_bonus_enabled
            or self.top_entropy_quantile < 1.0
            or self.off_policy_mask_threshold is not None
        )
        return (advantages == 0).all(-1) & (not more_acts)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if inputs["prompt_ids"].ndim == 2:  # TRL's rows as they were
            return super()._compute_loss(model, inputs)
        idle = self._without_gradient(inputs["advantages"])
        if self.accelerator.num_processes > 1:
            idle[0] &= not idle.all()  # the other processes wait for this one's gradients
        if "old_per_token_logps" in inputs:
            # An idle group's log-probabilities are left at 0: this makes its ratio 1.
            old = inputs["old_per_token_logps"].masked_fill(idle[:, None, None], 0.0)
            inputs = {**inputs, "old_per_token_logps": old}
        self._idle = idle
        try:
            return super()._compute_loss(model, by_row(inputs))
        finally:
            self._idle = None


def _base(model: Any) -> Any:  # noqa: ANN401
    """The model below an adapter."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
