"""GRPO in which a question's G completions share its image and its prompt, on TRL's trainer.

To TRL, Q questions are Q * G rows. `*` marks what is overridden here, all else is TRL's; q are the
questions of a micro-batch, P and C the tokens of the longest prompt and completion.

    _prepare_inputs, whenever new completions are due
      * _generate_and_score_completions           rows: a list of Q * G dicts
            OncePerQuestionProcessor              rows -> questions [::G] -> rows, images once
          * _generate_single_turn                 prefill (Q, P), decode (Q, G, C) -> rows; or vLLM
          * _calculate_rewards, then advantages   rows (Q * G)
          * _get_per_token_logps_and_entropies    of old policy and reference, as below
            rows_to_questions                     rows (Q * G, ...) -> questions (Q, G, ...)
        shuffle, cut into micro-batches           questions (q, G, ...), so groups stay whole
    compute_loss, for each micro-batch
      * _compute_loss, questions_to_rows          questions (q, G, ...) -> rows (q * G, ...)
          * _get_per_token_logps_and_entropies    rows (q * G, P + C)
                QuestionBatch.from_rows           -> prompts (q, P), completions (q, G, C)
                packing.pack, model, unpack       -> packed (q, tokens) -> (q, G, C) -> rows
            loss, clipping, KL, metrics           rows (q * G, C)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from medreason.config import Rollout
from medreason.generation import packed_attention, packing
from medreason.generation.draft_step import takes_drafts
from medreason.generation.drafts import draft_history
from medreason.generation.kept_graphs import DecodingGraphs
from medreason.generation.prefill import mrope_positions
from medreason.generation.sampling import sample_completions
from medreason.generation.token_choice import CompletionTokens
from medreason.generation.tolerance import tolerance
from medreason.generation.vision_cache import (
    VisionCache,
    takes_vision_features,
    vision_tower_is_frozen,
)
from medreason.models.load import without_adapter
from medreason.training import sharing_check
from medreason.training.group_batches import (
    Conversation,
    OncePerQuestionProcessor,
    QuestionBatch,
    questions_to_rows,
    rows_to_questions,
)
from medreason.training.sampling_check import SamplingCheck

_log = logging.getLogger(__name__)

Row = dict[str, Any]
"""A row of the data set; TRL's sampler repeats it for each of the question's completions."""


class GroupedGRPOTrainer(SamplingCheck):
    """TRL 1.16's trainer; log-probabilities, losses and gradients are its own to rounding.

    Overrides: `_generate_and_score_completions`, `_generate_single_turn`, `_calculate_rewards`,
    `_get_per_token_logps_and_entropies` and `_compute_loss`; the module's diagram says what each
    changes.

    Two differences remain. Completions are sampled with dropout off, which TRL leaves on. In the
    update a question's completions see one dropout mask over their prompt, where TRL draws one for
    each copy of the prompt.

    `rollout.fallback` decides about a model or a setting that rules out sharing: `error`, or
    `unshared`, TRL's way with a warning. `vision_cache` is the folder for the vision features of a
    tower that is not trained. `cuda_graphs`: see `decode`; with `keep_graphs` they stay beside the
    update, else each step captures them anew.
    """

    num_generations: int  # to TRL's types it may be missing

    def __init__(
        self,
        *args: Any,
        rollout: Rollout,
        vision_cache: Path,
        cuda_graphs: bool = False,
        keep_graphs: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._rollout = rollout
        self._vision_cache_folder = vision_cache if rollout.vision_cache_gb else None
        self._graphs = DecodingGraphs() if cuda_graphs else None
        self.keeps_graphs = keep_graphs
        self._vision_caches: dict[int, VisionCache | None] = {}
        """By `id` of the model: the policy and the reference model have towers of their own."""
        self.drafts = (
            None
            if self.use_vllm
            else draft_history(rollout.draft_tokens, self.accelerator.device.type)
        )
        self._shares_prompts = True
        self._checked = False
        self._rows: list[Row] = []
        self._seeds: list[str] = []
        """Of each question in the batch that is being sampled."""
        self._known_rewards: Tensor | None = None
        self._skipped: Tensor | None = None
        """(questions) of the micro-batch whose loss is being computed: groups without gradient."""
        if obstacles := sharing_check.sharing_obstacles(self):
            self._fall_back("; ".join(obstacles))
        for model in (self.model, self.ref_model):
            if self._shares_prompts and model is not None:
                packed_attention.enable(without_adapter(self.accelerator.unwrap_model(model)))
        if self.drafts and not takes_drafts(self.accelerator.unwrap_model(self.model)):
            self.drafts = None

    def _fall_back(self, reason: str) -> None:
        key = "rollout.update" if self.use_vllm else "rollout"
        if self._rollout.fallback == "error":
            raise ValueError(
                f"{key}=grouped cannot be used: {reason}; choose {key}=trl, or let "
                "rollout.fallback=unshared do so where it must"
            )
        if self._rollout.dynamic_sampling:
            raise ValueError(
                f"rollout=grouped cannot be used: {reason}; without it there is no "
                f"rollout.dynamic_sampling={self._rollout.dynamic_sampling}: set it to 0"
            )
        _log.warning("%s=grouped cannot be used: %s; going on as %s=trl", key, reason, key)
        self._shares_prompts = False

    def _check_sharing(self, row: Row) -> None:
        """Compare shared log-probabilities with TRL's on one question, before the first update."""
        difference, rounding = (
            sharing_check.mean_differences(self, self.shared_logps, row)
            if row.get("image") is not None
            else (torch.inf, 0.0)
        )
        allowed = tolerance(torch.bfloat16 if self.args.bf16 else self.model.dtype, rounding)
        # All processes must fall back together, or their collectives would not match.
        own = torch.tensor([[difference, allowed, rounding]], device=self.accelerator.device)
        differences, limits, roundings = self.accelerator.gather(own).unbind(-1)
        self.rounding = roundings.max().item()
        worst = int((differences / limits).argmax())  # NaN counts as the largest
        largest, allowed = differences[worst], limits[worst]
        self._checked = True
        kind = type(without_adapter(self.model)).__name__
        if largest.isinf():
            self._fall_back("a question without an image")
        elif largest.isnan():
            self._fall_back(
                f"the attention of {kind} gives the same with another mask: it does not follow it"
            )
        elif not largest <= allowed:
            self._fall_back(
                f"log-probabilities of one question differ from TRL's by {largest:.2g}, more than "
                f"{allowed:.2g}; the attention of {kind} does not follow mask or positions"
            )

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        if self._shares_prompts and self.model.training and not self._checked:
            self._check_sharing(inputs[0])
        if not self._shares_prompts or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        step, size = self.state.global_step, self.num_generations
        # Seed, step and question alone: the completions depend neither on how the batch is cut into
        # processes and micro-batches nor on a resume.
        self._seeds = [f"{self.args.seed}:{step}:{row['sample']}" for row in inputs[::size]]
        self._rows = inputs
        with self._processing_once(size):
            batch = rows_to_questions(super()._generate_and_score_completions(inputs), size)
        skipped = self.accelerator.gather(self._without_gradient(batch["advantages"]).sum())
        self._metrics["train"]["skipped_groups"].append(skipped.sum().item())
        return batch

    @contextmanager
    def _processing_once(self, completions: int) -> Iterator[None]:
        """Within, TRL's processor handles each question once."""
        processor = self.processing_class  # TRL reads this attribute; its methods take none
        self.processing_class = OncePerQuestionProcessor(processor, completions)
        try:
            yield
        finally:
            self.processing_class = processor

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: list[list[Image] | None] | None,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        processor = self.processing_class
        if self.use_vllm or not isinstance(processor, OncePerQuestionProcessor):
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,  # pyright: ignore[reportArgumentType]
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            model.eval()
            groups = self._sample(model, processor, range(len(self._seeds)), "")
            if self._rollout.dynamic_sampling:
                self._resample_constant_groups(model, processor, groups)
            model.train()
        if self._graphs and not self.keeps_graphs:
            self._graphs.release()
        if self.drafts:
            for name, value in self.drafts.take_counts().items():
                self._metrics["train"][name].append(value)
        rows = [row for group in groups for row in group]
        return [row.ids for row in rows], [row.logps for row in rows]

    def _sample(
        self,
        model: PreTrainedModel,
        processor: OncePerQuestionProcessor,
        places: Sequence[int],
        attempt: str,
    ) -> list[list[CompletionTokens]]:
        """The completions of the questions at `places`, as groups."""
        inputs = {k: v.to(self.accelerator.device) for k, v in processor.inputs(places).items()}
        inputs |= self._image_inputs(model, inputs.pop("pixel_values"), inputs["image_grid_thw"])
        size = self.num_generations
        questions = [self._rows[i * size]["sample"] for i in places for _ in range(size)]
        # One autocast context around all decoding steps: it casts float32 weights once and keeps
        # the copies until it ends.
        with self.accelerator.autocast():
            return sample_completions(
                model,
                inputs,
                completions=size,
                settings=self.generation_config,
                seeds=[self._seeds[i] + attempt for i in places],
                total_over_ranks=self._total_over_ranks if self.is_fsdp_enabled else int,
                graphs=self._graphs,
                drafts=self.drafts.of_rows(questions) if self.drafts else None,
            )

    def _total_over_ranks(self, count: int) -> int:
        """FSDP gathers each layer's weights from all processes, so all decode equally long."""
        own = torch.tensor(count, device=self.accelerator.device)
        return int(self.accelerator.reduce(own, "sum"))

    def _resample_constant_groups(
        self,
        model: PreTrainedModel,
        processor: OncePerQuestionProcessor,
        groups: list[list[CompletionTokens]],
    ) -> None:
        """Replace groups whose completions all got the same reward, as often as configured."""
        # Source: dynamic sampling of DAPO, arXiv:2503.14476, section 3.2.
        redrawn = 0
        for attempt in range(1, self._rollout.dynamic_sampling + 1):
            places, total = self._constant_groups([row.ids for group in groups for row in group])
            # The total is over all processes: rewards are gathered, so each must take part in
            # every attempt, whether its own groups are constant or not.
            if not total:
                break
            redrawn += total
            self._known_rewards = None
            if places:
                new = self._sample(model, processor, places, f":{attempt}")
                for place, group in zip(places, new, strict=True):
                    groups[place] = group
        self._metrics["train"]["redrawn_groups"].append(redrawn)

    def _constant_groups(self, ids: list[list[int]]) -> tuple[list[int], int]:
        """(places of this process's groups of equal rewards, their number over all processes)."""
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        prompts = [row["prompt"] for row in self._rows]
        self._known_rewards = self._calculate_rewards(self._rows, prompts, completions, ids)
        weights = self.reward_weights.to(self._known_rewards.device)
        rewards = (self._known_rewards * weights).nansum(-1).view(-1, self.num_generations)
        constant = torch.isclose(rewards, rewards[:, :1]).all(-1)  # (questions of all processes)
        own = constant.unflatten(0, (self.accelerator.num_processes, -1))
        places = own[self.accelerator.process_index].nonzero()[:, 0]
        return places.tolist(), int(constant.sum())

    def _calculate_rewards(
        self,
        inputs: list[Row],
        prompts: list[Conversation],
        completions: list[Conversation],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        # With dynamic sampling the last attempt has computed them for these very completions; a
        # second call would pay a judge twice.
        if self._known_rewards is not None:
            rewards, self._known_rewards = self._known_rewards, None
            return rewards
        # What rewards logged about completions that were replaced must not reach the metrics.
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
        if not self._shares_prompts or not self.model.training:
            return super()._get_per_token_logps_and_entropies(
                model,
                *(input_ids, attention_mask, logits_to_keep, batch_size),
                *(compute_entropy, compute_aux_loss),
                **inputs,
            )
        size = self.num_generations
        # TRL passes every field that some model takes, None where this one has none.
        images = {name: value for name, value in inputs.items() if value is not None}
        questions = QuestionBatch.from_rows(
            input_ids, attention_mask, logits_to_keep, size, **images
        )
        skipped = [False] * len(questions) if self._skipped is None else self._skipped.tolist()
        scored = [i for i in range(len(questions)) if not skipped[i]]
        logps = torch.zeros(questions.completion_ids.shape, device=input_ids.device)
        entropies = torch.full_like(logps, torch.nan)
        at_once = max((batch_size or len(input_ids)) // size, 1)
        for places in (scored[i : i + at_once] for i in range(0, len(scored), at_once)):
            logps[places], shared_entropies = self.shared_logps(model, questions, places)
            if compute_entropy:
                entropies[places] = shared_entropies
        if not scored:
            # The loss is 0, and backward still needs a graph that reaches the parameters.
            logps = logps + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)
        elif any(skipped):
            # Skipped groups have no entropy. With the mean of the others in its place, TRL logs the
            # mean over the groups that are trained on.
            mean = entropies[scored][questions.completion_mask[scored].bool()].mean().detach()
            entropies = entropies.nan_to_num(nan=mean.item())
        self._compare_shared(model, questions, logps, scored)
        return logps.flatten(0, 1), entropies.flatten(0, 1) if compute_entropy else None, None

    def _compare_shared(
        self, model: nn.Module, questions: QuestionBatch, logps: Tensor, scored: Sequence[int]
    ) -> None:
        """Compare the log-probabilities (questions, G, C) of the `scored` questions with those of
        drawing; with dropout those of the first one."""

        def rows(places: Sequence[int], values: Tensor) -> Tensor:
            compared = torch.full_like(logps, torch.nan)
            compared[places] = values
            return compared.flatten(0, 1)

        def of_first() -> Tensor:
            first = scored[:1]
            return rows(first, self.shared_logps(model, questions, first)[0])

        if scored:
            self.compare_with_drawn(model, rows(scored, logps[scored].detach()), of_first)

    def likely_causes(self) -> str:
        used = {
            "drafts (set rollout.draft_tokens=0)": self.drafts,
            "CUDA graphs (hardware.cuda_graphs=false)": self._graphs is not None,
            "stored vision features (rollout.vision_cache_gb=0)": self._vision_cache_folder,
            "a model whose KV cache or attention changed with transformers (rollout=trl)": True,
        }
        return ", ".join(cause for cause, applies in used.items() if applies)

    def shared_logps(
        self,
        model: nn.Module,
        questions: QuestionBatch,
        places: Sequence[int],
        *,
        by_blocks: bool | None = None,
        unmasked: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities, entropies) of the questions at `places`, each (places, G, C).

        `by_blocks`: see `packed_attention.attention_inputs`. `unmasked` hides nothing from any
        token, so that `sharing_check` sees whether the model follows a mask.
        """
        prompt = questions.prompts(places)
        packed = packing.pack(
            prompt["input_ids"],
            prompt["attention_mask"],
            mrope_positions(self.accelerator.unwrap_model(model), prompt),
            questions.completion_ids[places],
            questions.completion_mask[places],
        )
        base = without_adapter(self.accelerator.unwrap_model(model))
        dtype = torch.bfloat16 if self.args.bf16 else base.dtype
        attention = packed_attention.attention_inputs(base, packed, dtype, by_blocks=by_blocks)
        if unmasked:
            attention["attention_mask"] = torch.zeros_like(attention["attention_mask"])
        with self.accelerator.autocast():
            outputs = model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                **attention,
                **self._image_inputs(model, prompt["pixel_values"], prompt["image_grid_thw"]),
                # TRL's own head on the packed sequence: temperature, precision and the tiles of
                # logits are TRL's. Labels need no shift, since a completion block begins with the
                # prompt's last token.
                shift_labels=packed.labels,
                fused_lm_head=True,
            )
        entropies = outputs.log_probs if outputs.entropy is None else outputs.entropy
        return (
            packing.unpack(outputs.log_probs.float(), packed),
            packing.unpack(entropies.float(), packed),
        )

    def _image_inputs(
        self, model: nn.Module, pixel_values: Tensor, grids: Tensor
    ) -> dict[str, Any]:
        """The forward's arguments for images: vision features where the tower is not trained."""
        base = without_adapter(self.accelerator.unwrap_model(model))
        if id(base) not in self._vision_caches:
            # FSDP and DeepSpeed gather the tower's weights in the model's forward alone, neither to
            # encode an image here nor for the digest that names the cache's files.
            sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            constant = vision_tower_is_frozen(base) or base is without_adapter(self.ref_model)
            precision = f"{base.dtype} {self.args.bf16} {self.args.fp16}"
            limit = int(1e9 * self._rollout.vision_cache_gb)
            self._vision_caches[id(base)] = (
                VisionCache(base, precision, self._vision_cache_folder, limit)
                if constant and not sharded and takes_vision_features(base)
                else None
            )
        cache = self._vision_caches[id(base)]
        if cache is None:
            return {"pixel_values": pixel_values, "image_grid_thw": grids}
        with self.accelerator.autocast():
            features = cache(pixel_values.split(grids.prod(-1).tolist()), grids.split(1))
        return {"mm_encoder_outputs": features, "image_grid_thw": grids}

    def _without_gradient(self, advantages: Tensor) -> Tensor:
        """(questions) of advantages (questions, completions): the groups that move no parameter."""
        # With equal rewards all advantages are 0, and so is the policy's loss. These other terms
        # have a gradient all the same, or choose tokens over the whole micro-batch.
        other_terms = (
            self.beta != 0.0
            or self._entropy_bonus_enabled
            or self.top_entropy_quantile < 1.0
            or self.off_policy_mask_threshold is not None
        )
        return (advantages == 0).all(-1) & (not other_terms)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if inputs["prompt_ids"].ndim == 2:  # TRL's own rows: evaluation, or after a fallback
            return super()._compute_loss(model, inputs)
        skipped = self._without_gradient(inputs["advantages"])
        if self.accelerator.num_processes > 1:
            # DDP waits for the gradients of every process, and FSDP for its forward pass: one
            # group is computed even if all could be skipped.
            skipped[0] &= not skipped.all()
        if "old_per_token_logps" in inputs:
            # Log-probabilities of skipped groups stay 0. With the old ones at 0 too the ratio is 1,
            # which the logged clip ratios count as not clipped.
            old = inputs["old_per_token_logps"].masked_fill(skipped[:, None, None], 0.0)
            inputs = {**inputs, "old_per_token_logps": old}
        self._skipped = skipped
        try:
            return super()._compute_loss(model, questions_to_rows(inputs))
        finally:
            self._skipped = None
