"""A causal language model that lost layers and carries small linear patches where they were.

This file lies beside the weights of such a model, so that transformers loads it with
`trust_remote_code=True` where the linearpatch package isn't installed. It adds three things to a model of
transformers: each entry of `config.linear_patches` puts an operator on what enters, or leaves, one module, each of
`config.linear_sizes` says how many outputs and inputs of a matrix are left, and `config.linear_removed` says which
modules of attention or MLP sublayers are removed, and where those that remain keep their keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6  # added to a mean square before dividing by its root, where a model has no other
PATCH_PREFIX = "linear_patch_"  # of the names of patches, as submodules of what they sit on


OPERATORS: dict[str, type[Operator]] = {}


class Operator(nn.Module):
    """Maps what a patch reads to what it writes; a checkpoint holds its parameters and its spec.

    A class defines `spec` and `from_spec`, and is registered with its name: `class Mine(Operator, name="mine")`.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, name: str, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.name = name
        OPERATORS[name] = cls

    def spec(self) -> dict[str, Any]:
        """Plain values from which `from_spec` builds an operator of the same shape."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls, **spec: Any) -> Operator:
        """An operator that does nothing yet: its parameters are those of the identity."""
        raise NotImplementedError


def operator_from(entry: Mapping[str, Any]) -> Operator:
    """The operator that an entry of `config.linear_patches` describes, doing nothing yet."""
    spec = {key: value for key, value in entry.items() if key not in ("module", "side", "operator")}
    return OPERATORS[entry["operator"]].from_spec(**spec)


class ChannelScale(Operator, name="channel_scale"):
    """Multiplies each channel, or all channels alike: x ↦ x ⊙ d.

    Args:
        scale: d, `[hidden_size]` or `[1]`.
    """

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = _parameter(scale)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale `[…, hidden_size]`."""
        return hidden * self.scale

    def spec(self) -> dict[str, Any]:
        """Its size: that of the stream, or 1."""
        return {"size": self.scale.numel()}

    @classmethod
    def from_spec(cls, size: int) -> ChannelScale:  # type: ignore[override]
        """A scale of one."""
        return cls(torch.ones(size))


class ChannelShift(Operator, name="channel_shift"):
    """Adds the same to every token: x ↦ x + b.

    Args:
        bias: b, `[hidden_size]`.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = _parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shift `[…, hidden_size]`."""
        return hidden + self.bias

    def spec(self) -> dict[str, Any]:
        """Its size."""
        return {"size": self.bias.numel()}

    @classmethod
    def from_spec(cls, size: int) -> ChannelShift:  # type: ignore[override]
        """A shift by nothing."""
        return cls(torch.zeros(size))


class LinearMap(Operator, name="linear_map"):
    """Multiplies by a matrix and adds a bias: x ↦ x W + b, one matrix product.

    Args:
        matrix: W for row vectors, `[hidden_size, hidden_size]`, or as many rows as what it reads is wide.
        bias: b, `[hidden_size]`.
    """

    def __init__(self, matrix: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        # Stored as torch.nn.Linear does, so that the product needs no transposed copy.
        self.weight = _parameter(matrix.T)
        self.bias = None if bias is None else _parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`."""
        return functional.linear(hidden, self.weight, self.bias)

    def spec(self) -> dict[str, Any]:
        """Its size, the width of what it reads where that is another, and whether it has a bias."""
        size, inputs = self.weight.shape
        return {"size": size, "bias": self.bias is not None} | ({} if inputs == size else {"inputs": inputs})

    @classmethod
    def from_spec(cls, size: int, bias: bool = False, inputs: int | None = None) -> LinearMap:  # type: ignore[override]
        """The identity, or nothing where it reads something else than the stream."""
        matrix = torch.eye(size) if inputs is None else torch.zeros(inputs, size)
        return cls(matrix, torch.zeros(size) if bias else None)


class FeatureMap(Operator, name="feature_map"):
    """Adds a linear map of what a layer sees of the stream: x ↦ x ⊙ d + n(x) W + b.

    n(x) is x, or x over its root mean square, as the norm before a layer has it. W may be a product A B of two
    thin matrices. Normalised and without d it is a layer of its own to formats that have linear layers.

    Args:
        maps: W, `[hidden_size, hidden_size]`, or A and B, `[hidden_size, rank]` and `[rank, hidden_size]`.
        normalised: Whether n divides by the root mean square.
        scale: d, `[hidden_size]`; None: one.
        bias: b, `[hidden_size]`.
        epsilon: Added to the mean square before its root is taken; the model's norms have theirs.
    """

    def __init__(
        self,
        maps: Sequence[Tensor],
        normalised: bool,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        self.weights = nn.ParameterList([_parameter(matrix.T) for matrix in maps])
        self.normalised = normalised
        self.epsilon = epsilon
        self.scale = None if scale is None else _parameter(scale)
        self.bias = None if bias is None else _parameter(bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`."""
        added = rms_normalised(hidden, self.epsilon) if self.normalised else hidden
        *first, last = self.weights
        for weight in first:
            added = functional.linear(added, weight)
        added = functional.linear(added, last, self.bias)
        return added + (hidden if self.scale is None else hidden * self.scale)

    @property
    def is_layer(self) -> bool:
        """Whether it adds what it makes of the normalised stream to the stream as it is, as a layer would."""
        return self.normalised and self.scale is None

    def spec(self) -> dict[str, Any]:
        """Its size, its rank where it has one, and which of its parts there are."""
        return {
            "size": len(self.weights[-1]),
            "bias": self.bias is not None,
            "normalised": self.normalised,
            "scale": self.scale is not None,
            "rank": len(self.weights[0]) if len(self.weights) > 1 else None,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_spec(  # type: ignore[override]
        cls,
        size: int,
        bias: bool = False,
        normalised: bool = False,
        scale: bool = False,
        rank: int | None = None,
        epsilon: float = EPSILON,
    ) -> FeatureMap:
        """A map that adds nothing to the stream."""
        shapes = [(size, size)] if rank is None else [(size, rank), (rank, size)]
        maps = [torch.zeros(shape) for shape in shapes]
        return cls(maps, normalised, torch.ones(size) if scale else None, torch.zeros(size) if bias else None, epsilon)


class GatedMlp(Operator, name="gated_mlp"):
    """Adds what a small MLP makes of the normalised stream: x ↦ x + (silu(n(x) G) ⊙ n(x) U) D + b.

    n(x) is x over its root mean square. It is a layer without attention.

    Args:
        gate: G, `[hidden_size, width]`.
        up: U, of the same shape.
        down: D, `[width, hidden_size]`.
        bias: b, `[hidden_size]`.
        epsilon: Added to the mean square before its root is taken; the model's norms have theirs.
    """

    def __init__(
        self, gate: Tensor, up: Tensor, down: Tensor, bias: Tensor | None = None, epsilon: float = EPSILON
    ) -> None:
        super().__init__()
        self.gate, self.up, self.down = _parameter(gate.T), _parameter(up.T), _parameter(down.T)
        self.bias = None if bias is None else _parameter(bias)
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[…, hidden_size]`."""
        normed = rms_normalised(hidden, self.epsilon)
        units = functional.silu(functional.linear(normed, self.gate)) * functional.linear(normed, self.up)
        return hidden + functional.linear(units, self.down, self.bias)

    def spec(self) -> dict[str, Any]:
        """Its sizes, and whether there is a bias."""
        size, width = self.down.shape
        return {"size": size, "width": width, "bias": self.bias is not None, "epsilon": self.epsilon}

    @classmethod
    def from_spec(cls, size: int, width: int, bias: bool = False, epsilon: float = EPSILON) -> GatedMlp:  # type: ignore[override]
        """An MLP that adds nothing to the stream; its units read a channel each, so that it can be trained."""
        inward = torch.eye(size).repeat(1, -(-width // size))[:, :width]
        return cls(inward, inward, torch.zeros(width, size), torch.zeros(size) if bias else None, epsilon)


def rms_normalised(hidden: Tensor, epsilon: float) -> Tensor:
    """The stream over its root mean square, `[…, hidden_size]`, as an RMSNorm without a weight has it."""
    wide = hidden.float()  # squares of massive activations overflow in half precision
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)).to(hidden.dtype)


def _parameter(values: Tensor) -> nn.Parameter:
    """Frozen values in the default dtype, which `from_pretrained` sets to the model's."""
    return nn.Parameter(values.to(torch.get_default_dtype()).contiguous(), requires_grad=False)


def attach(module: nn.Module, patch: nn.Module, side: str) -> None:
    """Put a patch on what enters a module or leaves it, as its submodule, which moves and casts with it.

    Args:
        module: A decoder layer, a norm, or what writes to the stream.
        patch: Maps `[…, hidden_size]` to the same shape. It is cast to the module's dtype.
        side: `input` or `output`.
    """
    anchor = next((weight for weight in module.parameters() if not (weight.is_meta or _is_packed(weight))), None)
    if anchor is not None:
        patch = patch.to(device=anchor.device, dtype=anchor.dtype)
    name = f"{PATCH_PREFIX}{sum(name.startswith(PATCH_PREFIX) for name, _ in module.named_children())}"
    module.add_module(name, patch)
    if side == "input":
        module.register_forward_pre_hook(partial(_on_input, name), with_kwargs=True)
    else:
        module.register_forward_hook(partial(_on_output, name))


def _is_packed(weight: Tensor) -> bool:
    """Whether a weight is quantised, so that its dtype isn't one to compute in."""
    return not weight.is_floating_point() or weight.dtype.itemsize == 1


def _on_input(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (_apply(module, name, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": _apply(module, name, kwargs["hidden_states"])}


def _on_output(name: str, module: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (_apply(module, name, output[0]), *output[1:])
    return _apply(module, name, output)


def _apply(module: nn.Module, name: str, hidden: Tensor) -> Tensor:
    """Patch a stream where the patch is: with layers on several devices it comes from the one before."""
    patch = module.get_submodule(name)
    weight = next(patch.parameters())
    patched: Tensor = patch(hidden if weight.is_meta else hidden.to(weight.device))
    return patched


class RemovedModule(nn.Module):
    """Stands for a module of a sublayer that was removed; it has no weights and keeps nothing in a cache.

    Args:
        adds: Whether the output of the module was added to the stream: then nothing is, else it hands on what it reads.
        entries: Of the tuple that the module returned; 0: it returned a tensor.
    """

    def __init__(self, adds: bool, entries: int) -> None:
        super().__init__()
        self.adds = adds
        self.entries = entries

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the rest of the layer takes for the module's output."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        if hidden is None:
            hidden = next(value for value in kwargs.values() if isinstance(value, Tensor))
        output = torch.zeros_like(hidden) if self.adds else hidden
        return (output, *[None] * (self.entries - 1)) if self.entries else output


def remove_sublayers(model: nn.Module, removed: Mapping[str, Any]) -> None:
    """Put placeholders where modules of sublayers were, and give the others their places in a cache.

    Args:
        model: It changes.
        removed: `modules`: each with `module`, its name, and the arguments of a `RemovedModule`; `caches`: each with
            `module`, the name of one that keeps keys and values, `attribute`, and the `value` that this has now.
    """
    for entry in removed["modules"]:
        owner, _, name = entry["module"].rpartition(".")
        setattr(model.get_submodule(owner), name, RemovedModule(entry["adds"], entry["entries"]))
    for entry in removed["caches"]:
        model.get_submodule(entry["module"]).__dict__[entry["attribute"]] = entry["value"]


def resize(matrix: nn.Linear, num_outputs: int, num_inputs: int) -> None:
    """Make room for another number of weights in a matrix whose values are loaded later."""
    matrix.out_features, matrix.in_features = num_outputs, num_inputs
    matrix.weight = nn.Parameter(matrix.weight.new_empty(num_outputs, num_inputs))
    if matrix.bias is not None:
        matrix.bias = nn.Parameter(matrix.bias.new_empty(num_outputs))


class LinearPatchMixin:
    """Makes a causal language model as its configuration says: patches, sizes of layers, removed sublayers."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        for name, (num_outputs, num_inputs) in (getattr(config, "linear_sizes", None) or {}).items():
            resize(self.get_submodule(name), num_outputs, num_inputs)
        if removed := getattr(config, "linear_removed", None):
            remove_sublayers(self, removed)
        for entry in config.linear_patches:
            attach(self.get_submodule(entry["module"]), operator_from(entry), entry["side"])
        self.post_init()

    # transformers reads the source of a class to see what it can switch; that of the family's class says it.

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(_family(cls)._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(_family(cls)._can_set_experts_implementation())


def _family(cls: type) -> Any:
    return next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))
