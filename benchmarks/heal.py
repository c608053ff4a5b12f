"""A step of healing against the passes it can't do without, and against two models side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.distill import END, START, Case, embedded_case
from benchmarks.measure import Claim, embedded_model, time_ratio
from linearpatch.distillation.loop import Loop
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.sources import Online
from linearpatch.models.edit import PlacedOperator
from linearpatch.models.passes import record
from linearpatch.models.runner import Runner
from linearpatch.models.weight_changes import LowRankUpdate

BLOCKS, VALIDATION, LENGTH = 4, 1, 512
LORA_BEHIND: dict[str, Any] = {"trainable": "lora", "lora_layers": "after_interface"}
# What trains, with the name it has here.
SETS: dict[str, dict[str, Any]] = {
    "lora after the interface": LORA_BEHIND,
    "neighbours": {"trainable": "neighbours"},
    "all": {"trainable": "all"},
}


def claims() -> list[Claim]:
    """SmolLM2 without layers 12 to 18, on its own 512-token blocks."""
    return claims_on(embedded_case(embedded_model(), BLOCKS, VALIDATION, LENGTH), repeats=6)


def claims_on(case: Case, *, repeats: int) -> list[Claim]:
    """Steps against their floor, and that of LoRA against the plain way.

    Args:
        case: What is trained, and on what.
        repeats: How many times each is timed.
    """
    found = []
    for name, settings in SETS.items():
        loop = loop_of(case, **settings)
        ratio, mine, floor = time_ratio(loop.advance, floor_of(case, loop), repeats=repeats)
        layers = len(trained_layers(loop))
        floor_text = (
            f"dense forward with head + 3 × forward of the {layers} layers whose weights or inputs have gradients"
        )
        detail = f"{mine:.2f} s / {floor:.2f} s, 1 × {case.ids.shape[1]} tokens"
        found.append(Claim(f"step, {name} / ({floor_text})", ratio, 1.15, "", detail))
    loop, plain = loop_of(case, **LORA_BEHIND), TwoModels(case, loop_of(case, **LORA_BEHIND))
    losses = [(loop.advance(), plain.advance()) for _ in range(len(case.ids))]
    apart = max(abs(ours - other) for ours, other in losses)
    ratio, mine, other = time_ratio(loop.advance, plain.advance, repeats=repeats)
    tokens = f"1 × {case.ids.shape[1]} tokens"
    return [
        *found,
        Claim(
            "step, lora after the interface / two models, whole logits, peft",
            ratio, 1 / 1.5, "", f"{mine:.2f} s / {other:.2f} s, {tokens}: {1 / ratio:.2f} × faster",
        ),
        Claim("largest difference of their losses", apart, 1e-5, "", f"{len(losses)} steps, {losses[-1][0]:.4f}"),
    ]  # fmt: skip


def loop_of(case: Case, **settings: Any) -> Loop:
    """A training at its beginning."""
    training = OutputKL(validations=1, checkpoint_minutes=None, learning_rate=1e-3, **settings)
    site = case.loop().student.edit.operators[0].site
    edit = case.pruned.with_operators([PlacedOperator(site, case.patch())])
    weights = training.trainable_set.weights(case.decoder, edit, seed=0)
    student = Runner(case.decoder, edit.with_weights(weights))
    source = Online(training, student, torch.cat([case.ids, case.validation]))
    return Loop(training, student, source, len(case.validation))


def trained_layers(loop: Loop) -> list[int]:
    """The kept layers whose weights or inputs get gradients."""
    return [step.layer for step in loop.student.steps if step.layer < loop.student.decoder.num_layers]


def floor_of(case: Case, loop: Loop) -> Callable[[], None]:
    """The passes that no way of training can do without."""
    decoder, batch = case.decoder, case.ids[:1].to(case.decoder.input_device)
    layers = trained_layers(loop)
    recording = record(decoder, batch)

    @torch.no_grad()
    def passes() -> None:
        decoder.model(input_ids=batch, use_cache=False)
        for _ in range(3):
            decoder.run_layers(recording.streams[layers[0]], recording.calls, layers)

    return passes


@dataclass
class TwoModels:
    """The plain way: the dense model, and the whole pruned model with peft's LoRA in it, each with all its logits.

    Args:
        case: What is trained, and on what.
        like: The training that it repeats: its settings, first values and order of sequences.
    """

    case: Case
    like: Loop
    step: int = 0
    parameters: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        edit, decoder = self.case.pruned, self.case.decoder
        self.view: Any = edit.view(decoder)
        patch = self.case.patch()
        layers: nn.ModuleList = self.view.get_decoder().layers
        layers[START].register_forward_pre_hook(lambda _, args: (patch(args[0]), *args[1:]))
        training = self.like.training
        updates = self.like.student.edit.weights
        paths = {name: f"{name.layer - (END - START)}.{name.name.removesuffix('.weight')}" for name in updates}
        config = LoraConfig(
            r=training.lora_rank, lora_alpha=training.lora_alpha, target_modules=[f"layers.{p}" for p in paths.values()]
        )
        inject_adapter_in_model(config, self.view)
        self.parameters = list(patch.parameters())
        for name, update in updates.items():
            assert isinstance(update, LowRankUpdate)
            module: Any = layers.get_submodule(paths[name])
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            down.data.copy_(update.down)
            self.parameters += [down, up]
        rate, decay = training.learning_rate, training.weight_decay
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=decay)
        least = training.learning_rate * training.final_learning_rate
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.like.total, eta_min=least)

    def advance(self) -> float:
        """One step; the answer is its loss."""
        training, decoder = self.like.training, self.case.decoder
        assert isinstance(training, OutputKL)
        ids = self.like.source.ids[list(self.like.rows(self.step))].to(decoder.input_device)
        with torch.no_grad():
            largest = decoder.model(input_ids=ids, use_cache=False).logits.float().topk(training.top_k, dim=-1)
            teacher = largest.values.softmax(dim=-1).half().float()
            teacher = teacher / teacher.sum(dim=-1, keepdim=True)
        logits = self.view(input_ids=ids, use_cache=False).logits.gather(-1, largest.indices)
        student = logits.float().log_softmax(dim=-1)
        loss = functional.kl_div(student, teacher, reduction="sum") / ids.numel()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, training.max_grad_norm or 0.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()
