"""How many kernels a decoding step and an update launch, counted with tensors without values.

Each operator that computes or writes something counts as one; views, empty tensors and metadata
are none. Attention is what CUDA runs, one kernel, beside what prepares its mask; what reads a tile
of logits, on CUDA a Triton kernel, is one, too. Some operators are more than one kernel (gradients
of a norm's weights, sums of large tensors), so real counts are a little higher.

An update is counted with tensors of a CPU, since autograd asks for CUDA's driver; autocast casts
a few inputs less there (10 of 299 operators in the forward pass of two layers).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.library import _scoped_library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl import modeling_qwen2_vl
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from medreason.generation import (
    fused_layers,
    fused_operators,
    fused_step,
    kept_graphs,
    packed_attention,
    packing,
)
from medreason.generation.cuda_graph import CudaGraphStep
from medreason.generation.kept_graphs import DecodingGraphs, KeptGraphStep
from medreason.generation.kv_cache import repeat_kv_cache
from medreason.generation.prefill import Prefill, PromptCache
from medreason.generation.token_choice import TokenChoice
from medreason.models.patch_embedding import multiply_patches

_NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::detach", "prim::")
_IN_PLACE = ("aten::index_copy_", "aten::index_fill_")
_OF_SOME_ROWS = ("aten::embedding", "aten::index_select", "aten::gather", *_IN_PLACE)
"""They read or write no more of a tensor than what they copy."""
_PATCHES = 28 * 28
"""Of an image of 392 x 392 pixels, the largest of `model=qwen2_vl_2b`."""


@register_flop_formula([torch.ops.medreason.product, torch.ops.medreason.add_product])
def _flops_in_float32(*shapes: list[int], out_shape: object = None) -> int:
    a, b = shapes[-2:]
    return 2 * a[0] * a[1] * b[1]


@register_flop_formula([torch.ops.medreason.attend])
def _flops_of_attention(queries: list[int], keys: list[int], *_: object, **__: object) -> int:
    rows, heads, asked, width = queries
    return 4 * rows * heads * asked * keys[2] * width


class Kernel(NamedTuple):
    """One kernel, and the least that it does."""

    operator: str
    moved: int
    """Bytes read and written."""
    flops: int
    """Of products."""


class KernelCounter(TorchDispatchMode):
    """Within, lists the kernels that are launched."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name, returns = func._schema.name, func._schema.returns
        alias = returns[0].alias_info if returns else None
        is_view = alias is not None and not alias.is_write
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not is_view and not name.startswith(_NO_KERNEL):
            of_product = flop_registry.get(func.overloadpacket)
            flops = of_product(*args, **kwargs, out_val=result) if of_product else 0
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            if name == "medreason::turn_into_cache":  # writes keys and values of a token
                tensors = [*tensors[:3], tensors[0]]
            if name == "medreason::add_product":
                tensors = [tensors[0], *tensors]
            written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            if name in _OF_SOME_ROWS:
                tensors, written = tensors[-1:] if name in _IN_PLACE else written, written[:0]
                tensors *= 2
            self.kernels.append(Kernel(name, sum(map(_bytes, [*tensors, *written])), flops))
        return result


def _bytes(tensor: Tensor) -> int:
    # Fewer than its numbers where it is expanded.
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def decoding_kernels(
    config: PreTrainedConfig,
    *,
    questions: int = 4,
    completions: int = 4,
    prompt: int = 256,
    tokens: int = 256,
    done: int = 0,
    trained: bool = True,
    fused: bool = True,
    adapter: Mapping[str, Any] | None = None,
) -> list[Kernel]:
    """Kernels of a decoding step behind `done` of the `tokens`, as a CUDA graph captures it.

    `trained` is a rollout, whose questions share their prompts, with weights in float32 under
    autocast to bfloat16, or those of a bfloat16 base with an `adapter` (settings of LoRA); else an
    evaluation with weights in bfloat16.
    """
    float32 = trained and adapter is None
    known = mock.patch.object(fused_step, "_is_known", return_value=fused)
    built = mock.patch.object(fused_operators, "are_available", return_value=True)
    placed = mock.patch.object(kept_graphs, "signature", return_value=())  # without addresses
    on_cuda = (FakeTensorMode(), torch.device("cuda"), torch.no_grad(), _as_on_cuda("CUDA"))
    with ExitStack() as stack:
        for context in (*on_cuda, known, built, placed):
            stack.enter_context(context)
        model: Any = _model(config, torch.float32 if float32 else torch.bfloat16).eval()
        if adapter is not None:
            # PEFT would move what is on the device already, which tensors without values refuse.
            stack.enter_context(mock.patch.object(nn.Module, "to", lambda module, *_, **__: module))
            model = get_peft_model(model, LoraConfig(**adapter)).eval().get_base_model()
        with _autocast("cuda", enabled=trained):
            prefill = _prefilled(config, questions, completions, prompt, tokens, shared=trained)
            step = _step(model, prefill, tokens)
            step.skip(done)
            run = step.kernels if isinstance(step, KeptGraphStep) else step.run
            run()  # autocast casts the weights once and keeps them
            with KernelCounter() as counter:
                run()
    return counter.kernels


def _step(model: PreTrainedModel, prefill: Prefill, room: int) -> CudaGraphStep | KeptGraphStep:
    if fused_step.takes_fused_steps(model):
        return DecodingGraphs().begin(model, prefill, room)
    return CudaGraphStep(model, prefill.cache(), prefill.mask, room)


def _prefilled(
    config: PreTrainedConfig,
    questions: int,
    completions: int,
    prompt: int,
    tokens: int,
    *,
    shared: bool,
) -> Prefill:
    cache, rows = _prompt_cache(config, questions, prompt), questions * completions
    entries = torch.arange(questions).repeat_interleave(completions)
    return Prefill(
        logits=torch.empty(rows, 1),
        position=torch.empty(3, rows, 1, dtype=torch.long),
        mask=torch.ones(rows, prompt, dtype=torch.long),
        cache=functools.partial(repeat_kv_cache, cache, entries, tokens),
        prompts=PromptCache(cache, torch.ones(questions, prompt)) if shared else None,
    )


def _prompt_cache(config: PreTrainedConfig, prompts: int, tokens: int) -> DynamicCache:
    text = config.get_text_config()
    width = text.hidden_size // text.num_attention_heads
    cache = DynamicCache()
    for layer in range(text.num_hidden_layers):
        states = torch.empty(prompts, text.num_key_value_heads, tokens, width, dtype=torch.bfloat16)
        cache.update(states, states, layer)
    return cache


def update_kernels(
    config: PreTrainedConfig,
    *,
    questions: int,
    completions: int = 4,
    tokens: int = 256,
    text_tokens: int = 60,
    checkpointing: bool = True,
    fused: bool = True,
    first: bool = True,
) -> tuple[list[Kernel], list[Kernel]]:
    """Kernels of (forward, backward) pass of a micro-batch of `questions` in GRPO of all weights,
    without those of the optimizer. Gradients of others than the `first` of a step are added up."""
    packed, grids = _packed(config, questions, completions, tokens, text_tokens)
    device = "cpu"
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known = mock.patch.object(fused_layers, "_is_known", return_value=True)
    with mode, known:
        model = _model(config, torch.float32).train()
        packed_attention.enable(model)
        if fused:
            assert fused_layers.fuse(model)
        trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if not first:
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
    attention: Any = packed_attention.attention_inputs(model, packed, torch.bfloat16)

    def fake(tensor: Tensor) -> Tensor:
        return mode.from_tensor(tensor).to(device)

    if blocks := attention.get("blocks"):
        index = {n: fake(getattr(blocks, n)) for n in ("block_index", "sequence_index")}
        attention["blocks"] = dataclasses.replace(blocks, **index)
    attention["attention_mask"] = fake(attention["attention_mask"])
    inputs = {"input_ids": fake(packed.input_ids), "position_ids": fake(packed.position_ids)}
    labels, places, predicted = map(fake, (packed.labels, packed.places, packed.predicted))
    vision: Any = model.model.visual
    values = config.vision_config.in_channels * 2 * config.vision_config.patch_size**2
    labelled = _head_of(questions * completions * tokens)
    with mode, _as_on_cuda("CPU"), _known_images(questions), labelled:
        with KernelCounter() as forward, _autocast(device, enabled=True):
            pixels = torch.empty(questions * _PATCHES, values, device=device)
            features = vision(pixels, grids).pooler_output
            outputs = model(
                **inputs,
                **attention,
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=(features,))},  # pyright: ignore
                shift_labels=labels,
                fused_lm_head=True,
            )
        with KernelCounter() as backward:
            logps = outputs.log_probs.float().gather(1, places.flatten(1)).view_as(places)
            logps = logps.masked_fill(~predicted, 0.0)
            torch.exp(logps - logps.detach()).mean().backward()
    return forward.kernels, backward.kernels


def prefill_kernels(
    config: PreTrainedConfig, *, questions: int, text_tokens: int = 60, fused: bool = True
) -> list[Kernel]:
    """Kernels of the prefill of a rollout: images and prompts through the model, each once."""
    prompt, grids = text_tokens + _PATCHES // 4, _grids(questions)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known = mock.patch.object(fused_layers, "_is_known", return_value=True)
    with mode, known, torch.no_grad():
        model: Any = _model(config, torch.float32).eval()
        if fused:
            assert fused_layers.fuse(model)
        values = config.vision_config.in_channels * 2 * config.vision_config.patch_size**2
        pixels = torch.empty(questions * _PATCHES, values)
        mask = torch.ones(questions, 1, prompt, prompt, dtype=torch.bool)
        tokens = torch.zeros(questions, prompt, dtype=torch.long)
        on_cuda = (_as_on_cuda("CPU"), _known_images(questions), _autocast("cpu", enabled=True))
        with on_cuda[0], on_cuda[1], on_cuda[2], KernelCounter() as counter:
            features = model.model.visual(pixels, grids).pooler_output
            encoded = BaseModelOutputWithPooling(pooler_output=(features,))  # pyright: ignore
            model(
                input_ids=tokens,
                position_ids=tokens.expand(3, -1, -1),
                attention_mask=mask,
                mm_encoder_outputs={"image": encoded},
                use_cache=True,
                logits_to_keep=1,
            )
    return counter.kernels


def choosing_kernels(config: PreTrainedConfig, *, rows: int) -> list[Kernel]:
    """Kernels by which a step's tokens are sampled from logits in bfloat16."""
    vocabulary = config.get_text_config().vocab_size
    settings = GenerationConfig(do_sample=True, suppress_tokens=[5, 6, 7])
    with FakeTensorMode(), torch.device("cuda"):
        logits = torch.empty(rows, vocabulary, dtype=torch.bfloat16)
        numbers = torch.empty(rows, dtype=torch.float64)
        choose = TokenChoice(settings, torch.device("cuda"))
        with KernelCounter() as counter:
            choose(logits, numbers)
    return counter.kernels


@contextmanager
def _head_of(tokens: int) -> Iterator[None]:
    """TRL's head takes so many tokens, those with a label, as on CUDA; tensors without values
    cannot say which."""
    of_all = chunked_logprob.ChunkedLogProbFunction.apply

    def of_labelled(hidden: Tensor, weight: Tensor, bias: None, labels: Tensor, *rest: Any) -> Any:  # noqa: ANN401
        places = torch.arange(tokens, device=hidden.device)
        results = of_all(hidden.index_select(0, places), weight, bias, labels[:tokens], *rest)
        return tuple(
            r if r is None else r.new_zeros(len(hidden)).index_copy(0, places, r) for r in results
        )

    head = SimpleNamespace(apply=of_labelled)
    with mock.patch.object(trl_utils, "_ChunkedLogProbFunction", head):
        yield


def _model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    multiply_patches(model)  # as `load_model`
    return model


def _packed(
    config: PreTrainedConfig, questions: int, completions: int, tokens: int, text_tokens: int
) -> tuple[packing.PackedSequences, Tensor]:
    """(questions of equal length, packed, with values; grids of their images)."""
    prompt = text_tokens + _PATCHES // 4
    ids = torch.full((questions, prompt), 5)
    ids[:, :-text_tokens] = config.image_token_id
    positions = torch.arange(prompt).expand(3, questions, -1)
    packed = packing.pack(
        ids,
        torch.ones_like(ids),
        positions,
        torch.full((questions, completions, tokens), 5),
        torch.ones(questions, completions, tokens, dtype=torch.long),
    )
    return packed, _grids(questions)


def _grids(questions: int) -> Tensor:
    side = round(_PATCHES**0.5)
    return torch.tensor([[1, side, side]] * questions)


@contextmanager
def _as_on_cuda(backend: str) -> Iterator[None]:
    """Attention and RMSNorm as CUDA computes them, tiles of logits as its Triton kernel does."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if mask is None:
            flash = torch.ops.aten._scaled_dot_product_flash_attention
            return flash(query, key, value, dropout, is_causal, scale=scale)[0]
        assert not enable_gqa  # with a mask, CUDA has no kernel for it
        if mask.dtype == torch.bool:
            hidden = torch.full((), -torch.inf, dtype=query.dtype, device=query.device)
            mask = torch.where(mask, torch.zeros_like(hidden), hidden)
        if any(stride % 8 for stride in mask.stride()[:-1]):
            width = mask.shape[-1]
            mask = torch.nn.functional.pad(mask, (0, -width % 8))[..., :width]
        mask = mask.expand(*query.shape[:3], key.shape[2])
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        keeps = query.requires_grad and torch.is_grad_enabled()
        return efficient(query, key, value, mask, keeps, dropout, is_causal, scale=scale)[0]

    def norm(
        hidden: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        # Stands in for `_fused_rms_norm`, one kernel forward and one backward as well, which torch
        # takes apart on a CPU.
        return torch.ops.aten.native_layer_norm(hidden, shape, weight, None, eps)[0]

    def read(tile: Tensor, *_: object, **__: object) -> None:
        tile.sum()  # one kernel

    def replace(tile: Tensor, *_: object, **__: object) -> None:
        tile.neg_()

    with (
        _scoped_library("aten", "IMPL") as library,
        mock.patch.multiple(
            chunked_logprob,
            _forward_tile=read,
            _backward_tile=replace,
            _addmm_fp32=torch.ops.medreason.add_product,
            _use_triton=lambda _: False,
        ),
        mock.patch.object(trl_utils, "_use_triton", return_value=False),
    ):
        if backend == "CPU":
            library.impl("rms_norm", norm, "AutogradCPU")
        library.impl("scaled_dot_product_attention", attention, f"Autograd{backend}")
        yield


@contextmanager
def _autocast(device: str, *, enabled: bool) -> Iterator[None]:
    """Autocast to bfloat16, which `torch.autocast` refuses for CUDA where there is no device."""
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.set_autocast_enabled(device, enabled)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled(device, False)
        torch.clear_autocast_cache()


@contextmanager
def _known_images(images: int) -> Iterator[None]:
    """Sizes of images without asking tensors for values, which these have not."""

    class Ends:
        """Stands in for the ends of images in the sequence of patches."""

        def __init__(self, values: list[int]) -> None:
            self.tolist = lambda: values

        def __getitem__(self, _: slice) -> Ends:
            return self

        def __sub__(self, _: Ends) -> Ends:
            return Ends([_PATCHES] * images)

    def positions(*_: object, **__: object) -> Tensor:
        return torch.empty(_PATCHES * images, 2, dtype=torch.long)

    ends = Ends([_PATCHES * i for i in range(images + 1)])
    with (
        mock.patch.multiple(
            modeling_qwen2_vl,
            get_vision_attention_seqlens=lambda *_, kwargs: (kwargs.pop("cu_seqlens", ends), None),
            get_vision_position_ids=positions,
            torch_compilable_check=lambda *_: None,
        ),
        mock.patch.object(fused_layers, "get_vision_cu_seqlens", return_value=ends),
    ):
        yield
