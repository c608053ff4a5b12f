"""What the rest of the package knows of a Hugging Face causal language model.

Everything family-specific is here: where the layers, the final norm and the head are, how the hidden
states reach a layer and come back, and how logits are made of them. It is data plus two small helpers,
`split_call` and `unwrap`; nothing else touches the inputs or outputs of a layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linearpatch.errors import ModelError
from linearpatch.models.modeling_linearpatch import EPSILON
from linearpatch.models.offload import device_of, read_parameter
from linearpatch.models.quantised import keep_order_of_codes, num_parameters
from linearpatch.models.tracing import Parts, check_tokens, parts_of

# Names under which models return and take what they remember of earlier tokens.
CACHES = ("past_key_values", "cache_params", "state", "mems")


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
        parts: Names of its parts within it.
        body: Turns token ids into hidden states (`hidden_states`).
        layers: The decoder layers, in order.
        final_norm: Reads the stream that leaves the last layer; whatever feeds the head.
        head: Maps normed hidden states to logits.
        config: The text configuration (a multimodal model's `text_config`).
    """

    model: PreTrainedModel
    parts: Parts
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
    def num_parameters(self) -> int:
        """Numbers in all its weights; tied ones count once."""
        return num_parameters([self.model])

    @property
    def vocab_size(self) -> int:
        """Number of logits per token."""
        weight: Any = self.head.weight
        return int(weight.shape[0])

    @property
    def num_embeddings(self) -> int:
        """Number of token ids that the model can read."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def residual_multiplier(self) -> float:
        """By what a layer multiplies the output of each branch before adding it to the stream (Granite)."""
        return float(getattr(self.config, "residual_multiplier", None) or 1.0)

    @property
    def input_device(self) -> torch.device:
        """Where token ids must be for the model to read them."""
        return device_of(self.model.get_input_embeddings())

    def reading_device(self, index: int) -> torch.device:
        """Where stream `index` is read, and so where operators on it compute."""
        return device_of(self.reader(index))

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

    def forward(self, input_ids: Tensor, **settings: Any) -> Any:
        """Run the body alone, without the head and without whatever else a multimodal model has.

        Args:
            input_ids: `[batch, tokens]`, on `input_device`.
            settings: Passed on, such as `use_cache`.
        """
        return self.body(input_ids=input_ids, **settings)

    def hidden_states(self, output: Any) -> Tensor:
        """What the head reads, `[batch, tokens, hidden_size]`, of an output of `forward`."""
        hidden: Tensor = output[0]
        within = f"{self.parts.final_norm}.".startswith(f"{self.parts.body}.")
        return hidden if within else self.final_norm(hidden)

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

        def rows(name: str) -> Tensor:
            values: Tensor = getattr(self.head, name)  # which may be computed from a parameter that trains
            values = read_parameter(self.head, name) if values.is_meta else values
            return values[indices.to(values.device)].to(normed.device)

        products = torch.bmm(rows("weight"), normed[:, :, None]).squeeze(-1)
        has_bias = getattr(self.head, "bias", None) is not None
        return self.scaled(products + rows("bias") if has_bias else products)

    def scaled(self, logits: Tensor) -> Tensor:
        """What the family does to the head's products: each is scaled or capped by itself."""
        return self.parts.scale(logits)


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
    """Separate the hidden states from the rest of what a layer (or the final norm) is called with."""
    if args:
        return args[0], LayerCall(args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), LayerCall((), rest)


def unwrap(output: Tensor | tuple[Any, ...]) -> Tensor:
    """The hidden states in a layer's output: the output itself, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def cache_of(output: Any) -> dict[str, Any]:
    """What a model remembers of the tokens it read, as arguments of its next call, whatever it calls it."""
    caches = {name: getattr(output, name, None) for name in CACHES}
    return {name: cache for name, cache in caches.items() if cache is not None}


def last_logits_only(model: PreTrainedModel) -> dict[str, Any]:
    """Arguments by which a model makes the logits of the last token alone, where its family can."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def text_config(config: Any) -> Any:
    """The configuration that describes the decoder: `text_config` where a model has more than one."""
    return config.get_text_config(decoder=True)


def context_length(config: Any) -> int | None:
    """How many tokens a model reads; None where its configuration doesn't say."""
    longest = getattr(text_config(config), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def norm_epsilon(decoder: Decoder) -> float:
    """What the norms of a model add to a mean square; `EPSILON` where its configuration doesn't say."""
    return float(getattr(decoder.config, "rms_norm_eps", None) or EPSILON)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """Find the parts of a causal language model.

    Raises:
        ModelError: the model is not a decoder-only language model, or has no final norm before its head.
    """
    kind = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ModelError(
            f"model is a {kind}. Allowed: a causal language model of transformers, such as "
            "AutoModelForCausalLM loads; linearpatch.load_model(…) gives a model and its tokenizer."
        )
    config = text_config(model.config)
    head = model.get_output_embeddings()
    if getattr(model.config, "is_encoder_decoder", False) or head is None:
        raise ModelError(
            f"{kind} is not a decoder-only language model: it has no causal head over one stack of layers. "
            "Allowed: any model that AutoModelForCausalLM loads, such as Llama, Qwen, Gemma or Mistral."
        )
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise ModelError(
            f"The configuration of {kind} has no num_hidden_layers: it isn't one stack of layers. Use a decoder-only "
            "model with one, such as Llama, Qwen or Gemma."
        )
    keep_order_of_codes(model)
    parts = parts_of(model, config)
    body, layers, norm = (model.get_submodule(name) for name in (parts.body, parts.layers, parts.final_norm))
    assert isinstance(layers, nn.ModuleList)
    return Decoder(model, parts, body, layers, norm, head, config)


@torch.no_grad()
def check_logits(decoder: Decoder) -> None:
    """Reject a model that isn't causal, or whose logits are not head(body(tokens)) up to the scalings known here.

    One forward pass of the whole model over a few tokens, and one of its body. A family with another step between
    its layers and its logits would otherwise be measured wrongly, without any sign.

    Raises:
        ModelError: the logits differ, or depend on later tokens.
    """
    kind = type(decoder.model).__name__
    tokens = check_tokens(decoder.model, rows=2)  # they differ in the last one
    expected = decoder.model(input_ids=tokens, use_cache=False).logits.float()
    before = expected[:, :-1]
    exact = decoder.model.dtype in (torch.float32, torch.float64)
    if not _close(before[0], before[1], 1e-4 if exact else 1e-2):  # later tokens may change little in random models
        raise ModelError(
            f'{kind} is not causal: its logits change with tokens that come later. Set "is_decoder": true in '
            "its config.json where the family has that, or use a decoder-only model such as Llama, Qwen or Gemma."
        )
    streams: list[Tensor] = []
    handle = decoder.final_norm.register_forward_pre_hook(
        lambda _, args, kwargs: streams.append(split_call(args, kwargs)[0]), with_kwargs=True, prepend=True
    )  # before a patch that stands there, which acts in the call of the norm below as well
    try:
        hidden = decoder.hidden_states(decoder.forward(tokens, use_cache=False))
    finally:
        handle.remove()
    # NanoChat's final norm reads the embeddings, too, before the layers.
    normed = decoder.final_norm(streams[-1]) if streams else hidden
    if not all(_close(decoder.logits(states), expected) for states in (hidden, normed)):
        raise ModelError(
            f"{kind} computes its logits in a way this version doesn't support. "
            "Supported: head(norm(stream)), with a factor or a soft cap."
        )


def _close(actual: Tensor, expected: Tensor, tolerance: float = 1e-2) -> bool:
    """Whether logits are the same up to rounding, by the measure of the largest: a model's may all be small."""
    actual, expected = actual.float().cpu(), expected.float().cpu()
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= tolerance * expected.abs().max())
