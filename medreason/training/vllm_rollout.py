"""rollout=vllm: vLLM draws the completions from the model whose log-probabilities the update takes.

TRL 1.16 with vLLM 0.30 alone draws from another one, which its importance weights hide (figures in
`experiments/vllm/README.md`):

- An image's placeholders reach vLLM expanded, and vLLM expands the first one again (trl#6294).
- vLLM keeps the features of images that it has seen. A weight sync resets its prefix cache and
  leaves them, so that a trained vision tower changes nothing until they are dropped (trl#7198).
- vLLM reads pixel limits from the checkpoint, not from the processor of the run.
- vLLM computes in the checkpoint's precision, float32 in bfloat16.
- An adapter is merged into the base and subtracted again at each sync, which rounds the base away
  in bfloat16 (trl#6688). Here vLLM gets it as an adapter, where it takes it.
- The log-probabilities that are compared with vLLM's are computed with dropout.
- Each completion is a request of its own with its image, drawn by vLLM's own seed: another one
  after a resume.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.processing_utils import ProcessorMixin
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from medreason.generation.vllm_settings import (
    adapter_problem,
    adapter_settings,
    image_settings,
    loading,
)
from medreason.models import merging
from medreason.training.sampling_check import SamplingCheck, without_dropout

_log = logging.getLogger(__name__)

_CPU_BLOCK = 32
"""Tokens of a block of vLLM's KV cache, in place of 128 on a CPU: completions share whole ones of
their prompt."""


class VllmGRPOTrainer(SamplingCheck):
    """TRL's trainer with the engine of this module.

    Before `GroupedGRPOTrainer` among the bases of a class, that trainer with it.
    """

    def __init__(self, *args: Any, precision: str, **settings: Any) -> None:
        with _replaced(grpo_trainer, "VLLMGeneration", self._engine):
            super().__init__(*args, precision=precision, **settings)
        if truncations := self._truncations():
            _log.warning(
                "rollout=vllm does not compare log-probabilities of drawing and update with %s: "
                "vLLM gives those among the tokens that are kept, the update those among all",
                ", ".join(truncations),
            )

    def _engine(self, **settings: Any) -> Engine:
        def step() -> int:
            return self.state.global_step

        assert self.num_generations
        return Engine(
            precision=self._precision,
            seed=self.args.seed,
            step=step,
            completions=self.num_generations,
            **settings,
        )

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, *inputs: Any, **settings: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        # Without gradients they are those that are compared with vLLM's, which draws without.
        with nullcontext() if torch.is_grad_enabled() else without_dropout(model):
            return super()._get_per_token_logps_and_entropies(model, *inputs, **settings)

    def likely_causes(self) -> str:
        return (
            "another version of vLLM or TRL that treats images, their cache or their scale "
            "otherwise, weights that changed on a server, or an adapter that vLLM does not apply; "
            "choose rollout=grouped"
        )

    def draws_from_all_tokens(self) -> bool:
        return not self._truncations()

    def _truncations(self) -> list[str]:
        """Settings with which vLLM gives log-probabilities among the tokens that they keep."""
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        return [
            f"method.trl.{name}={value}"
            for name, none in neutral.items()
            if (value := getattr(self, name)) is not None and value != none
        ]


class Engine(VLLMGeneration):
    """TRL's engine without what the head of this module lists, and the same on every resume."""

    def __init__(
        self,
        *,
        precision: str,
        seed: int,
        step: Callable[[], int],
        completions: int,
        processing_class: ProcessorMixin,
        **settings: Any,
    ) -> None:
        """`step` gives the number of the optimizer step, from which and `seed` the `completions`
        of each question are drawn."""
        self._precision, self._seed, self._step = precision, seed, step
        self._completions = completions
        self._processor: Any = processing_class
        self._adapter: tempfile.TemporaryDirectory[str] | None = None
        model, own = settings["model"], settings.get("mode", "colocate") == "colocate"
        if own and isinstance(model, PeftModel) and takes_as_adapter(model):
            self._adapter = tempfile.TemporaryDirectory(prefix="adapter-for-vllm-")
        self._syncs = 0
        super().__init__(processing_class=processing_class, **settings)

    def _init_vllm(self) -> None:
        def llm(**settings: Any) -> object:
            from vllm import LLM  # pyright: ignore[reportMissingImports]

            if not torch.cuda.is_available():
                _keep_weights_plain()
                settings["block_size"] = _CPU_BLOCK
            with loading(settings["model"], "rollout=vllm", "rollout=grouped"):
                built = LLM(
                    **settings,
                    dtype=self._dtype(),
                    **self._image_settings(),
                    **self._adapter_settings(),
                )
            built.generate = self._by_question(built.generate)
            return built

        with _replaced(vllm_generation, "LLM", llm):
            super()._init_vllm()

    def _dtype(self) -> str:
        return self._precision

    def _image_settings(self) -> dict[str, Any]:
        return image_settings(self._processor)

    def _by_question(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """vLLM's `generate` for TRL's rows, which it gets as questions where they are whole groups,
        so that it processes and prefills image and prompt once; with a seed for each row."""
        # By vLLM's own seed, completions after a resume would be others.

        def asked(rows: Sequence[object], **settings: Any) -> object:
            size = self._completions if len(rows) % self._completions == 0 else 1
            if self._adapter:
                settings["lora_request"] = self._adapter_request()
            # With tensor parallelism the processes of a group draw the same rows.
            first = self.accelerator.process_index // self.tensor_parallel_size * len(rows)
            each = []
            for row in range(0, len(rows), size):
                parameters = settings["sampling_params"].clone()
                parameters.n = size
                parameters.seed = self._row_seed(first + row)
                each.append(parameters)
            return generate(rows[::size], **settings | {"sampling_params": each})

        return asked

    def _row_seed(self, row: int) -> int:
        """Of a row of the step; a question's rows are counted up, as vLLM does."""
        question, completion = divmod(row, self._completions)
        place = f"{self._seed} {self._step()} {question}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:4]) + completion

    def generate(
        self, prompts: list[list[int]], images: list[list | None] | None, *args: Any, **more: Any
    ) -> tuple:
        if self.mode == "colocate" and images is not None:
            image = self._processor.image_token_id
            prompts = [once_an_image(ids, image) for ids in prompts]
        return super().generate(prompts, images, *args, **more)

    def _adapter_settings(self) -> dict[str, Any]:
        if not self._adapter:
            return {}
        configs: list[Any] = [*self.model.peft_config.values()]
        return adapter_settings(max(config.r for config in configs))

    def _adapter_request(self) -> object:
        """The adapter as it was last saved, under a number that vLLM has not seen."""
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        assert self._adapter
        return LoRARequest(f"sync {self._syncs}", self._syncs, self._adapter.name)

    def sync_weights(self) -> None:
        if self._adapter:  # its base is vLLM's already, and stays
            self.model.save_pretrained(self._adapter.name)
            self._syncs += 1
            self.llm.reset_prefix_cache()
            return
        super().sync_weights()
        if self.mode == "colocate":
            engine = self.llm.llm_engine
            engine.engine_core.reset_encoder_cache()
        elif self.accelerator.is_main_process:
            client = self.vllm_client
            client.session.post(f"{client.base_url}/reset_encoder_cache").raise_for_status()

    def _iter_named_params(self) -> Generator[tuple[str, Tensor], Any, None]:
        if isinstance(self.model, PeftModel):  # never sharded: see `config.checks`
            yield from merging.merged_weights(self.model)
        else:
            yield from super()._iter_named_params()


def takes_as_adapter(model: PeftModel) -> bool:
    """Whether vLLM applies the adapter as it is.

    Any other is merged beside the base, whose weights in half precision keep less of it.
    """
    layers = [f"{name}." for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    return not any(adapter_problem(config, layers) for config in model.peft_config.values())


def once_an_image(prompt_ids: Sequence[int], image: int) -> list[int]:
    """Token ids with one placeholder for each run of them, which vLLM expands itself."""
    before = [None, *prompt_ids]
    return [
        token for token, last in zip(prompt_ids, before, strict=False) if not token == last == image
    ]


def _keep_weights_plain() -> None:
    """Have vLLM for CPUs multiply by the weights themselves: its packed copies can't be loaded
    again, and a weight sync ends in an AssertionError."""
    from vllm.model_executor.layers import utils  # pyright: ignore[reportMissingImports]

    def plain(layer: nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = nn.functional.linear  # pyright: ignore[reportArgumentType]

    utils.dispatch_cpu_unquantized_gemm = plain


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """A module's attribute replaced while the block runs: TRL takes no other engine."""
    before = getattr(module, name, None)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
