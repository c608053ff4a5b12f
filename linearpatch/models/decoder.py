"""What the rest of the package knows of a Hugging Face causal language model.

Everything family-specific is here: where the layers, the final norm and the head are, how the hidden
states reach a layer and come back, and how logits are made of them. It is data plus two small helpers,
`split_call` and `unwrap`; nothing else touches the inputs or outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linearpatch.errors import ModelError

# Names under which families keep the final norm, beside the list of layers.
FINAL_NORMS = ("norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f")


@dataclass(frozen=True)
class LayerCall:
    """All that a layer was given beside the hidden states: masks, rotary tables, positions."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Decoder:
    """A causal language model seen as embeddings, a list of layers, a final norm and a head.

    Attributes:
        model: The model itself, never changed by holding it here.
        body: The module that owns the layers.
        layers: The decoder layers, in order.
        final_norm: Reads the stream that leaves the last layer.
        head: Maps normed hidden states to logits.
        config: The text configuration (a multimodal model's `text_config`).
    """

    model: PreTrainedModel
    body: nn.Module
    layers: nn.ModuleList
    final_norm: nn.Module
    head: nn.Module
    config: Any

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number of logits per token."""
        weight: Tensor = self.head.get_parameter("weight")
        return int(weight.shape[0])

    @property
    def residual_multiplier(self) -> float:
        """By what a layer multiplies the output of each branch before adding it to the stream (Granite)."""
        return float(getattr(self.config, "residual_multiplier", None) or 1.0)

    @property
    def input_device(self) -> torch.device:
        """Where token ids must be for the model to read them."""
        weight = self.model.get_input_embeddings().weight
        device: torch.device = self.model.device if weight.is_meta else weight.device
        return device

    def reader(self, index: int) -> nn.Module:
        """The module that reads stream `index`: layer `index`, or the final norm for `num_layers`."""
        return self.final_norm if index == self.num_layers else self.layers[index]

    def run_layers(self, hidden: Tensor, calls: dict[int, LayerCall], layers: Iterable[int]) -> Tensor:
        """Run some layers one after the other, each called as it was in the recorded forward pass.

        Args:
            hidden: Stream that the first of them reads, `[batch, tokens, hidden_size]`.
            calls: What each layer is given beside the stream (`passes.record`).
            layers: Indices in the order in which they run.

        Returns:
            The stream after the last of them.
        """
        for index in layers:
            call = calls[index]
            hidden = unwrap(self.layers[index](hidden, *call.args, **call.kwargs))
        return hidden

    def logits(self, normed: Tensor) -> Tensor:
        """Logits of hidden states that have passed the final norm, with the family's own scaling."""
        return self.scaled(self.head(normed))

    def logits_at(self, normed: Tensor, indices: Tensor) -> Tensor:
        """Logits of a few tokens of the vocabulary only, without those of all others.

        Args:
            normed: Hidden states after the final norm, `[rows, hidden_size]`.
            indices: Which logits of each row, `[rows, k]`.

        Returns:
            `[rows, k]`.
        """
        weight: Tensor = self.head.get_parameter("weight")
        products = torch.bmm(weight[indices], normed[:, :, None]).squeeze(-1)
        bias = getattr(self.head, "bias", None)
        return self.scaled(products if bias is None else products + bias[indices])

    def scaled(self, logits: Tensor) -> Tensor:
        """What the family does to the head's products: each is scaled or capped by itself."""
        if divisor := getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if factor := getattr(self.config, "logit_scale", None):  # Cohere
            logits = logits * factor
        if cap := getattr(self.config, "final_logit_softcapping", None):  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
    """Separate the hidden states from the rest of what a layer (or the final norm) is called with."""
    if args:
        return args[0], LayerCall(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), LayerCall((), rest)


def unwrap(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The hidden states in a layer's output: the output itself, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def text_config(config: Any) -> Any:
    """The configuration that describes the decoder: `text_config` where a model has more than one."""
    return config.get_text_config(decoder=True)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """Find the parts of a causal language model.

    Raises:
        ModelError: the model is not a decoder-only language model, or has no final norm before its head.
    """
    kind = type(model).__name__
    config = text_config(model.config)
    head = model.get_output_embeddings()
    if getattr(model.config, "is_encoder_decoder", False) or head is None:
        raise ModelError(
            f"{kind} is not a decoder-only language model: it has no causal head over one stack of layers. "
            "Allowed: any model that AutoModelForCausalLM loads, such as Llama, Qwen, Gemma or Mistral."
        )
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    if not found:
        raise ModelError(f"{kind} has no list of {config.num_hidden_layers} layers to prune.")
    path, layers = min(found, key=lambda item: item[0].count("."))
    body = model.get_submodule(path.rpartition(".")[0])
    norms = [getattr(body, name) for name in FINAL_NORMS if isinstance(getattr(body, name, None), nn.Module)]
    if not norms:
        raise ModelError(
            f"{kind} has no final norm beside its layers (looked for {', '.join(FINAL_NORMS)}): a post-norm "
            "model keeps no residual stream to patch. Use a pre-norm model."
        )
    return Decoder(model, body, layers, norms[0], head, config)


@torch.no_grad()
def check_logits(decoder: Decoder) -> None:
    """Refuse a model whose logits are not head(norm(stream)) up to the scalings known here.

    One forward pass over four tokens. A family with another step between its layers and its logits would
    otherwise be measured wrongly, without any sign.

    Raises:
        ModelError: the logits differ.
    """
    tokens = torch.arange(4, device=decoder.input_device)[None] % decoder.vocab_size
    stream: list[Tensor] = []
    handle = decoder.final_norm.register_forward_pre_hook(
        lambda _, args, kwargs: stream.append(split_call(args, kwargs)[0]), with_kwargs=True
    )
    try:
        expected = decoder.model(input_ids=tokens, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # families check the sizes in their configurations late, or not at all
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"{type(decoder.model).__name__} can't read four tokens: {reason}. The sizes in its configuration don't "
            "fit each other, as where hidden_size isn't a multiple of num_attention_heads, or that of "
            "num_key_value_heads. Check them."
        ) from error
    finally:
        handle.remove()
    actual = decoder.logits(decoder.final_norm(stream[0]))
    if not torch.allclose(actual.float().cpu(), expected.float().cpu(), rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"{type(decoder.model).__name__} computes its logits in a way this version doesn't know. "
            "Supported: head(norm(stream)), with a logit scale or softcap from the configuration."
        )
