"""Where the parts of a causal language model are, by watching one forward pass.

Names say little: each family calls its layers and its final norm otherwise, and a module of a known name may
be something else. What ran, in which order, and which module's output another one read says it for all families.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linearpatch.errors import ModelError
from linearpatch.models.logit_scale import LogitScale, fit_scale, ratio_of
from linearpatch.models.modeling_linearpatch import PATCH_PREFIX
from linearpatch.models.offload import device_of

# Where a traced model keeps what was found, so that copies of it (views) needn't be traced again.
_MEMORY = "_linearpatch_parts"
NUM_TOKENS = 4


@dataclass(frozen=True)
class Parts:
    """Names of a model's parts within it.

    Attributes:
        layers: The list of decoder layers.
        body: The innermost module that turns token ids into what the last layer writes.
        final_norm: Reads what the last layer writes and feeds the head.
        scale: What becomes of the head's products.
    """

    layers: str
    body: str
    final_norm: str
    scale: LogitScale


@dataclass
class _Trace:
    """What one forward pass showed, in order: which list's layer ran, and what the other modules read and wrote."""

    logits: Tensor | None = None

    layers: list[tuple[str, int, Tensor]] = field(default_factory=list)
    modules: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    head: list[tuple[Tensor, Tensor]] = field(default_factory=list)


def parts_of(model: PreTrainedModel, config: Any) -> Parts:
    """Find the layers, the body and the final norm of a model; a model that was traced before says it at once.

    Args:
        model: A causal language model with a head.
        config: The configuration of its text part.

    Raises:
        ModelError: it can't be seen as one list of layers, each run once, and a norm before the head.
    """
    known: Parts | None = model.__dict__.get(_MEMORY)
    if known is None:
        known = _find(model, config)
        model.__dict__[_MEMORY] = known
    return known


def check_tokens(model: PreTrainedModel, rows: int = 1) -> Tensor:
    """A few token ids that every vocabulary has, `[rows, tokens]`; rows differ in their last token only."""
    embeddings: Any = model.get_input_embeddings()
    tokens: Tensor = (torch.arange(NUM_TOKENS) + 3).expand(rows, -1).clone()
    tokens[:, -1] += torch.arange(rows) * 5
    tokens = tokens % embeddings.weight.shape[0]
    return tokens.to(device_of(embeddings))


def _find(model: PreTrainedModel, config: Any) -> Parts:
    kind, num_layers = type(model).__name__, config.num_hidden_layers
    lists = _lists(model, num_layers)
    if not lists:
        raise ModelError(
            f"{kind} has no list of {num_layers} layers (num_hidden_layers in its configuration) to prune. Use a "
            "decoder-only model with one, such as Llama, Qwen or Gemma."
        )
    trace = _run(model, lists)
    in_order = [name for name in lists if [i for path, i, _ in trace.layers if path == name] == list(range(num_layers))]
    if not in_order:
        raise ModelError(
            f"{kind} doesn't run each of its {num_layers} layers once, in order ({', '.join(lists)}), so that no layer "
            "stands for one step that could be left out. Use a model that does, such as Llama, Qwen or Gemma."
        )
    if len(in_order) > 1:
        raise ModelError(
            f"{kind} keeps the parts of its {num_layers} layers in several lists ({', '.join(in_order)}), so that no "
            "module is a layer that could be left out. Use a model with one list of layers, such as Llama, Qwen or "
            "Gemma."
        )
    (layers,) = in_order
    last = next(wrote for path, i, wrote in trace.layers if path == layers and i == num_layers - 1)
    norm, (factor, divisor) = _final_norm(kind, layers, trace, last, config)
    scale = fit_scale(trace.head[0][1], trace.logits, config) if trace.logits is not None else LogitScale()
    return Parts(layers, _body(model, layers), norm, scale.after(factor, divisor))


def _lists(model: PreTrainedModel, num_layers: int) -> list[str]:
    """Names of the outermost lists with as many modules as the model has layers."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _run(model: PreTrainedModel, lists: list[str]) -> _Trace:
    """One forward pass over a few tokens.

    Raises:
        ModelError: the model can't read tokens alone.
    """
    trace = _Trace()
    head = model.get_output_embeddings()
    with _watching(model, head, lists, trace), _evaluating(model), torch.no_grad():
        try:
            trace.logits = getattr(model(input_ids=check_tokens(model), use_cache=False), "logits", None)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # families check the sizes in their configurations late, or not at all
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelError(
                f"{type(model).__name__} can't read four tokens: {reason}. Either it doesn't read text alone, or the "
                "sizes in its configuration don't fit each other, as where hidden_size isn't a multiple of "
                "num_attention_heads, or that of num_key_value_heads. Check them."
            ) from error
    return trace


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _watching(model: nn.Module, head: nn.Module, lists: list[str], trace: _Trace) -> Iterator[None]:
    def layer_hook(path: str, index: int) -> Any:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if (wrote := _first_tensor(output)) is not None:
                trace.layers.append((path, index, wrote))

        return hook

    def module_hook(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = _first_tensor(args or kwargs.get("hidden_states", tuple(kwargs.values())))
            wrote = _first_tensor(output)
            if read is not None and wrote is not None:
                trace.modules.append((name, read, wrote))

        return hook

    handles = [head.register_forward_hook(lambda _, args, output: trace.head.append((args[0], output)))]
    for name, module in model.named_modules():
        owner = next((path for path in lists if name.startswith(f"{path}.")), None)
        if owner is None:
            if name and module is not head:
                handles.append(module.register_forward_hook(module_hook(name), with_kwargs=True))
        elif name.rpartition(".")[0] == owner:
            handles.append(module.register_forward_hook(layer_hook(owner, int(name.rpartition(".")[2]))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None


def _body(model: PreTrainedModel, layers: str) -> str:
    """The innermost module around the layers that reads token ids."""
    path = layers.rpartition(".")[0]
    while path:
        module = model.get_submodule(path)
        if not isinstance(module, nn.ModuleList) and "input_ids" in inspect.signature(module.forward).parameters:
            return path
        path = path.rpartition(".")[0]
    raise ModelError(
        f"{type(model).__name__} has no module that turns token ids into hidden states without its head (around its "
        f"layers, {layers}). Use a model with one, such as Llama, Qwen or Gemma."
    )


def _final_norm(kind: str, layers: str, trace: _Trace, last: Tensor, config: Any) -> tuple[str, tuple[float, float]]:
    """The module that reads what the last layer writes and feeds the head, and by what its output is multiplied."""
    if not trace.head:
        raise ModelError(f"{kind} makes no logits with its head from a few tokens. Use a causal language model.")
    fed, _ = trace.head[0]
    outside = [traced for traced in trace.modules if not layers.startswith(f"{traced[0]}.")]
    feeding = [(name, read) for name, read, wrote in outside if _same(wrote, fed)]
    # A patch where the last layers were removed belongs to the norm that reads what it writes.
    streams = [last, *(wrote for name, read, wrote in outside if PATCH_PREFIX in name and _same(read, last))]

    def is_stream(read: Tensor) -> bool:
        return any(_same(read, stream) for stream in streams)

    for name, read in feeding:
        if is_stream(read):
            return name, (1.0, 1.0)
    for name, read, wrote in outside:
        if is_stream(read) and (ratio := ratio_of(fed, wrote, config)) is not None:
            return name, ratio
    if _same(last, fed):
        raise ModelError(
            f"{kind} has no final norm: its head reads what its last layer writes (each layer ends with a norm of its "
            "own), so that no residual stream is left to patch. Use a pre-norm model."
        )
    several = [tuple(read.shape) for _, read in feeding]
    if several and several[0] != tuple(last.shape):
        raise ModelError(
            f"The layers of {kind} write values of shape {list(last.shape)}, its final norm reads {list(several[0])}: "
            "they don't pass on one residual stream that a patch could act on. Use a model with one stream, such as "
            "Llama, Qwen or Gemma."
        )
    between = "is computed from" if several else "isn't the output of a module, but computed from"
    raise ModelError(
        f"What the head of {kind} reads {between} the last layer's output in a way this version doesn't support: no "
        "single module stands between them. Supported: head(norm(stream))."
    )


def _same(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one value; accelerate may have moved it in between."""
    if tensor.shape != other.shape:
        return False
    return tensor.data_ptr() == other.data_ptr() or torch.equal(tensor.cpu(), other.to(tensor.dtype).cpu())
