"""GRPO in which a question's completions share its image and its prompt, on TRL's trainer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.models.utils import unwrap_model_for_generation

from medreason.config import Rollout
from medreason.generation import packed_attention, packing
from medreason.generation.prefill import mrope_positions
from medreason.generation.sampling import sample_completions
from medreason.generation.tolerance import tolerance
from medreason.generation.vision_cache import (
    VisionCache,
    takes_vision_features,
    vision_tower_is_frozen,
)
from medreason.models.load import without_adapter
from medreason.training import sharing_check
from medreason.training.group_batches import (
    OncePerQuestionProcessor,
    QuestionBatch,
    questions_from_rows,
    questions_to_rows,
    rows_to_questions,
)
from medreason.training.sharing_check import sharing_obstacles

_log = logging.getLogger(__name__)


class GroupedGRPOTrainer(GRPOTrainer):
    """TRL 1.16's trainer; log-probabilities, losses and gradients are its own to rounding.

    Overrides: `_generate_and_score_completions` (the processor sees a question once; the batch
    goes on question by question, so that TRL's shuffle and its cut keep groups whole),
    `_generate_single_turn` (decoding), `_calculate_rewards` (with `dynamic_sampling` they are known
    by then), `_get_per_token_logps_and_entropies` (one sequence a question) and `_compute_loss`
    (back to TRL's rows; groups without a gradient are left out).

    Completions are drawn with dropout off, which TRL leaves on. In the update a question's
    completions see one dropout mask over their prompt, where TRL draws one for each copy.

    `how.fallback` says what becomes of a model or a setting that does not allow this: `error`, or
    `unshared`, TRL's way with a warning. `cache` is the folder of features of a frozen vision
    tower.
    `graphs`: see `decode`.
    """

    # TRL leaves these open.
    accelerator: Any
    args: Any
    model: Any
    num_generations: Any
    processing_class: Any

    def __init__(
        self,
        *args: Any,
        how: Rollout,
        cache: Path,
        graphs: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._how = how
        self._cache = cache if how.vision_cache_gb else None
        self._graphs = graphs
        self._features: dict[int, VisionCache | None] = {}
        self._drawn_for: list[dict[str, Any]] = []
        self._scored: Tensor | None = None
        self._shares = True
        self._compared = False
        self._seeds: list[str] = []
        self._idle: Tensor | None = None
        if reasons := sharing_obstacles(self):
            self._fall_back("; ".join(reasons))
        for policy in (self.model, self.ref_model):
            if self._shares and policy is not None:
                packed_attention.enable(without_adapter(self.accelerator.unwrap_model(policy)))

    def _fall_back(self, reason: str) -> None:
        if self._how.fallback == "error":
            raise ValueError(
                f"rollout=grouped cannot be used: {reason}; choose rollout=trl, or let "
                "rollout.fallback=unshared do so where it must"
            )
        if self._how.dynamic_sampling:
            raise ValueError(
                f"rollout=grouped cannot be used: {reason}; without it there is no "
                f"rollout.dynamic_sampling={self._how.dynamic_sampling}: set it to 0"
            )
        _log.warning("rollout=grouped cannot be used: %s; going on as rollout=trl", reason)
        self._shares = False

    def _compare(self, row: dict[str, Any]) -> None:
        """Before the first update: are shared log-probabilities those of TRL, for one question?"""
        apart = sharing_check.difference(self, row) if row.get("image") is not None else torch.inf
        worst = self.accelerator.gather(torch.tensor(apart, device=self.accelerator.device)).max()
        dtype = torch.bfloat16 if self.args.bf16 else self.model.dtype
        allowed = tolerance(dtype)
        self._compared = True
        kind = type(without_adapter(self.model)).__name__
        if worst.isinf():
            self._fall_back("a question without an image")
        elif worst.isnan():
            self._fall_back(
                f"the attention of {kind} gives the same with another mask: it does not follow it"
            )
        elif not worst <= allowed:
            self._fall_back(
                f"log-probabilities of one question are {worst:.2g} apart from TRL's, more than "
                f"{allowed:.2g}; the attention of {kind} does not "
                "follow mask or positions"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self._shares and self.model.training and not self._compared:
            self._compare(inputs[0])
        if not self._shares or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        step, size = self.state.global_step, self.num_generations
        self._seeds = [f"{self.args.seed}:{step}:{row['sample']}" for row in inputs[::size]]
        self._drawn_for = inputs
        processor = self.processing_class
        self.processing_class = OncePerQuestionProcessor(processor, size)
        try:
            questions = rows_to_questions(super()._generate_and_score_completions(inputs), size)
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
        if not isinstance(once, OncePerQuestionProcessor):
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
            found = self._draw(model, once, range(len(self._seeds)), "")
            redrawn = 0
            for attempt in range(1, self._how.dynamic_sampling + 1):
                alike, total = self._alike([ids for group in found for ids in group])
                if not total:
                    break
                redrawn += total
                self._scored = None
                if alike:
                    again = self._draw(model, once, alike, f":{attempt}")
                    for place, group in zip(alike, again, strict=True):
                        found[place] = group
            model.train()
        if self._how.dynamic_sampling:
            self._metrics["train"]["redrawn_groups"].append(redrawn)
        # TRL takes sampling log-probabilities from vLLM alone; none leaves the loss as it is.
        return [ids for group in found for ids in group], None

    def _draw(
        self,
        model: PreTrainedModel,
        once: OncePerQuestionProcessor,
        chosen: Sequence[int],
        attempt: str,
    ) -> list[list[list[int]]]:
        """Completions of the chosen questions, each question's from its own stream."""
        inputs = {k: v.to(self.accelerator.device) for k, v in once.inputs(chosen).items()}
        inputs |= self._images(model, inputs.pop("pixel_values"), inputs["image_grid_thw"])
        # One context, so that weights in float32 are cast once and not for each token.
        with self.accelerator.autocast():
            found = sample_completions(
                model,
                inputs,
                completions=self.num_generations,
                settings=self.generation_config,
                seeds=[self._seeds[i] + attempt for i in chosen],
                total_over_ranks=self._total_over_ranks if self.is_fsdp_enabled else int,
                graphs=self._graphs,
            )
        return [[completion.ids for completion in group] for group in found]

    def _total_over_ranks(self, count: int) -> int:
        """FSDP gathers each layer's weights from all processes, as often in each."""
        own = torch.tensor(count, device=self.accelerator.device)
        return int(self.accelerator.reduce(own, "sum"))

    def _alike(self, ids: list[list[int]]) -> tuple[list[int], int]:
        """(questions of this process whose completions all get the same reward, their number over
        all processes). All processes call this equally often."""
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        prompts = [row["prompt"] for row in self._drawn_for]
        self._scored = self._calculate_rewards(self._drawn_for, prompts, completions, ids)
        weights = self.reward_weights.to(self._scored.device)
        rewards = (self._scored * weights).nansum(-1).view(-1, self.num_generations)
        alike = torch.isclose(rewards, rewards[:, :1]).all(-1)
        own = alike.unflatten(0, (self.accelerator.num_processes, -1))
        places = own[self.accelerator.process_index].nonzero()[:, 0]
        return places.tolist(), int(alike.sum())

    def _calculate_rewards(
        self,
        inputs: Any,  # noqa: ANN401
        prompts: Any,  # noqa: ANN401
        completions: Any,  # noqa: ANN401
        completion_ids_list: Any,  # noqa: ANN401
    ) -> Tensor:
        if self._scored is not None:
            scored, self._scored = self._scored, None
            return scored
        # What was noted of earlier draws is not of the completions trained on.
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **inputs: Any,
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
        questions = questions_from_rows(input_ids, attention_mask, logits_to_keep, size, **images)
        idle = [False] * len(questions) if self._idle is None else self._idle.tolist()
        busy = [i for i in range(len(questions)) if not idle[i]]
        logps = torch.zeros(questions.completion_ids.shape, device=input_ids.device)
        entropies = torch.full_like(logps, torch.nan)
        at_once = max((batch_size or len(input_ids)) // size, 1)
        for chosen in (busy[i : i + at_once] for i in range(0, len(busy), at_once)):
            logps[chosen], found = self.shared_logps(model, questions, chosen)
            if compute_entropy:
                entropies[chosen] = found
        if not busy:  # zero, and a graph for backward
            logps = logps + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        elif any(idle):
            # Not computed: the logged mean is to be that of the groups trained on.
            mean = entropies[busy][questions.completion_mask[busy].bool()].mean().detach()
            entropies = entropies.nan_to_num(nan=mean.item())
        return logps.flatten(0, 1), entropies.flatten(0, 1) if compute_entropy else None, None

    def shared_logps(
        self,
        model: nn.Module,
        questions: QuestionBatch,
        chosen: Sequence[int],
        *,
        by_blocks: bool | None = None,
        blind: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies), (questions, completions, completion tokens) both.

        `by_blocks`: see `packed_attention.attention_inputs`. `blind` hides nothing, to find out
        whether a mask is followed.
        """
        prompt = questions.prompts(chosen)
        packed = packing.pack(
            prompt["input_ids"],
            prompt["attention_mask"],
            mrope_positions(self.accelerator.unwrap_model(model), prompt),
            questions.completion_ids[chosen],
            questions.completion_mask[chosen],
        )
        inner = without_adapter(self.accelerator.unwrap_model(model))
        dtype = torch.bfloat16 if self.args.bf16 else inner.dtype
        attention = packed_attention.attention_inputs(inner, packed, dtype, by_blocks=by_blocks)
        if blind:
            attention["attention_mask"] = torch.zeros_like(attention["attention_mask"])
        with self.accelerator.autocast():
            outputs = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                **attention,
                **self._images(model, prompt["pixel_values"], prompt["image_grid_thw"]),
                shift_labels=packed.labels,
                fused_lm_head=True,  # TRL's own head: temperature, precision and memory are its
            )
        entropies = outputs.log_probs if outputs.entropy is None else outputs.entropy
        return (
            packing.unpack(outputs.log_probs.float(), packed),
            packing.unpack(entropies.float(), packed),
        )

    def _images(self, model: nn.Module, pixel_values: Tensor, grids: Tensor) -> dict[str, Any]:
        """What the forward takes of images: their features where the vision tower is frozen."""
        inner = without_adapter(self.accelerator.unwrap_model(model))
        if id(inner) not in self._features:
            whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
            steady = vision_tower_is_frozen(inner) or inner is without_adapter(self.ref_model)
            precision = f"{inner.dtype} {self.args.bf16} {self.args.fp16}"
            limit = int(1e9 * self._how.vision_cache_gb)
            self._features[id(inner)] = (
                VisionCache(inner, precision, self._cache, limit)
                if whole and steady and takes_vision_features(inner)
                else None
            )
        features = self._features[id(inner)]
        if features is None:
            return {"pixel_values": pixel_values, "image_grid_thw": grids}
        with self.accelerator.autocast():
            found = features(pixel_values.split(grids.prod(-1).tolist()), grids.split(1))
        return {"mm_encoder_outputs": found, "image_grid_thw": grids}

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
            return super()._compute_loss(model, questions_to_rows(inputs))
        finally:
            self._idle = None
