"""A step of distillation against the passes it can't do without, and an epoch against the published procedure."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.measure import Claim, embedded_model, peak_memory, text_blocks, time_ratio
from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import TokenBlocks
from linearpatch.distillation.loop import Loop
from linearpatch.distillation.output_kl import OutputKL
from linearpatch.distillation.patch_forms import FullPatch, dense_form
from linearpatch.distillation.sources import Cached, Online, Source
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit, PlacedOperator, Site
from linearpatch.models.model import LoadedModel
from linearpatch.models.modeling_linearpatch import LinearMap
from linearpatch.models.passes import record
from linearpatch.models.places import OnStream
from linearpatch.models.runner import Runner
from linearpatch.models.units import Interface
from linearpatch.patches.rotate import Rotate
from linearpatch.storage.cache import Cache

START, END = 12, 19
BLOCKS, VALIDATION, LENGTH = 4, 4, 512
TRAINING = OutputKL(validations=1, checkpoint_minutes=None)


@dataclass(frozen=True)
class Case:
    """What is trained, and on what.

    Attributes:
        decoder: The dense model.
        interface: The layers that are removed.
        operator: The patch to begin with.
        ids: Sequences for training.
        validation: Sequences for validation.
    """

    decoder: Decoder
    interface: Interface
    operator: nn.Module
    ids: Tensor
    validation: Tensor

    @property
    def pruned(self) -> Edit:
        """The model without these layers."""
        return Edit.of_layers(self.interface.layers)

    def patch(self) -> FullPatch:
        """The patch at its beginning, to be trained."""
        matrix, bias = dense_form(self.operator, self.decoder.hidden_size)
        return FullPatch(matrix.to(self.decoder.input_device), bias, around_start=False)

    def loop(self, source: Callable[[OutputKL, Runner, Tensor], Source] = Online) -> Loop:
        """A training at its beginning."""
        placed = PlacedOperator(on_stream(self.interface), self.patch())
        student = Runner(self.decoder, self.pruned.with_operators([placed]))
        ids = torch.cat([self.ids, self.validation])
        return Loop(TRAINING, student, source(TRAINING, student, ids), len(self.validation))


def claims() -> list[Claim]:
    """SmolLM2 without layers 12 to 18, on its own 512-token blocks."""
    case = embedded_case(embedded_model(), BLOCKS, VALIDATION, LENGTH)
    return [*time_claims(case, repeats=5, gain=1.35), *memory_claims()]


def on_stream(interface: Interface) -> Site:
    """A site on the stream after an interface."""
    return Site(interface, interface.reader, OnStream(interface.reader))


def embedded_case(model: LoadedModel, blocks: int, validation: int, length: int) -> Case:
    """The embedded model with the paper's patch, fitted on the blocks."""
    ids = text_blocks(model, blocks + validation, length).ids
    interface = Interface(START, END)
    (fitted,) = Rotate().fit(Workspace(model.decoder, TokenBlocks(ids[:blocks], "bench")), [on_stream(interface)])
    return Case(model.decoder, interface, fitted.module, ids[:blocks], ids[blocks:])


def time_claims(case: Case, *, repeats: int, gain: float) -> list[Claim]:
    """A step, an epoch, an epoch with kept targets, and the disk that those take.

    Args:
        case: What is trained.
        repeats: How many times each is timed.
        gain: How many times faster than the published procedure an epoch should be.
    """
    decoder, batch = case.decoder, case.ids[:1].to(case.decoder.input_device)
    reader = case.interface.reader
    recording = record(decoder, batch, {reader})
    after = list(range(reader, decoder.num_layers))
    calls = record(decoder, batch).calls

    @torch.no_grad()
    def least() -> None:
        decoder.model(input_ids=batch, use_cache=False)
        for _ in range(2):
            decoder.run_layers(recording.streams[reader], calls, after)

    stepping = case.loop()
    step, mine, other = time_ratio(lambda: stepping.advance(), least, repeats=4 * repeats)
    epoch, ours, published = time_ratio(lambda: epoch_of(case.loop()), lambda: published_epoch(case), repeats=repeats)
    with tempfile.TemporaryDirectory() as folder:
        kept, size = _kept(case, Path(folder))
        further, again, _ = time_ratio(lambda: _read_epoch(kept), lambda: published_epoch(case), repeats=repeats)
    loop = case.loop()
    epoch_of(loop)
    difference = abs(loop.validation.loss() - _validation_loss(case, published_epoch(case)))
    tokens = f"{len(case.ids)} × {case.ids.shape[1]} tokens"
    return [
        Claim(
            f"step / (dense forward with head + 2 × forward of the {len(after)} layers after the interface)",
            step, 1.15, "", f"{mine:.3f} s / {other:.3f} s, 1 × {case.ids.shape[1]} tokens",
        ),
        Claim(
            "epoch / the published procedure's, targets included",
            epoch, 1 / gain, "", f"{ours:.2f} s / {published:.2f} s, {tokens}: {1 / epoch:.2f} × faster",
        ),
        Claim("difference of their validation losses", difference, 1e-3, "", f"{loop.validation.loss():.4f}"),
        Claim(
            "epoch with kept targets and states / the published procedure's epoch, targets included",
            further, 1 / 3, "", f"{again:.2f} s: {1 / further:.2f} × faster",
        ),
        Claim(
            "disk for kept targets and states, headers of files (1 kB each) left out",
            size, 6 * TRAINING.top_k + 2 * decoder.hidden_size, "bytes/token", f"K = {TRAINING.top_k}",
        ),
    ]  # fmt: skip


def memory_claims() -> list[Claim]:
    """Peak memory of a step against that of the dense forward pass with head."""
    step, dense = (peak_memory(work, 1, LENGTH) for work in (two_steps, dense_forward))
    return [
        Claim(
            "peak memory of a step / dense forward with head",
            step / dense,
            1.25,
            "",
            f"{step / 2**20:.0f} MiB / {dense / 2**20:.0f} MiB, weights included, 1 × {LENGTH} tokens",
        )
    ]


@torch.no_grad()
def dense_forward(model: LoadedModel, ids: Tensor) -> None:
    """What the teacher alone needs."""
    model.decoder.model(input_ids=ids, use_cache=False)


def two_steps(model: LoadedModel, ids: Tensor) -> None:
    """What training needs; the optimiser's moments exist from the second step on."""
    identity = LinearMap(torch.eye(model.decoder.hidden_size))
    loop = Case(model.decoder, Interface(START, END), identity, ids.cpu().repeat(2, 1), ids.cpu()).loop()
    with torch.enable_grad():
        epoch_of(loop)


def published_epoch(case: Case) -> nn.Module:
    """An epoch by the published procedure, on the same sequences in the same order; the answer is its patch.

    First the dense model runs over all sequences and its top-K probabilities are kept, then the whole pruned model
    forward and backward with logits over the whole vocabulary. What the official code writes to disk stays in memory
    here, and its softmax over the vocabulary is left out.
    """
    decoder, rows = case.decoder, case.loop().rows
    device = decoder.input_device
    targets = []
    with torch.no_grad():
        for ids in case.ids:
            logits = decoder.model(input_ids=ids[None].to(device), use_cache=False).logits
            largest = (logits.float()).topk(TRAINING.top_k, dim=-1)
            targets.append((largest.values.softmax(dim=-1).half(), largest.indices))

    view, patch = _trainable_view(case)
    parameters = [patch.moved["matrix"]]
    optimizer = torch.optim.AdamW(parameters, lr=TRAINING.learning_rate, weight_decay=TRAINING.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, len(case.ids), eta_min=TRAINING.learning_rate * TRAINING.final_learning_rate
    )
    for step in range(len(case.ids)):
        (row,) = rows(step)
        probabilities, indices = targets[row]
        teacher = probabilities.float() / probabilities.float().sum(dim=-1, keepdim=True)
        logits = view(input_ids=case.ids[row][None].to(device), use_cache=False).logits
        student = logits.gather(-1, indices).float().log_softmax(dim=-1)
        loss = functional.kl_div(student, teacher, reduction="sum") / case.ids.shape[1]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, TRAINING.max_grad_norm or 0.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    operator: nn.Module = patch.operator()
    return operator


def _trainable_view(case: Case) -> tuple[nn.Module, FullPatch]:
    """The whole pruned model with a patch that trains in fp32."""
    patch, view = case.patch(), case.pruned.view(case.decoder)

    def patched(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (patch(args[0]), *args[1:])

    layers: nn.ModuleList = view.get_decoder().layers
    layers[case.interface.layers.start].register_forward_pre_hook(patched)  # the reader's index in the view
    return view, patch


def epoch_of(loop: Loop) -> None:
    """As many steps as an epoch has, without validation."""
    for _ in range(loop.steps_per_epoch):
        loop.advance()


def _read_epoch(loop: Loop) -> None:
    """An epoch for which what was kept is read from disk."""
    assert isinstance(loop.source, Cached)
    loop.source.forget()
    epoch_of(loop)


def _kept(case: Case, folder: Path) -> tuple[Loop, float]:
    """A training whose targets and states were made in advance; and their bytes for each token."""
    keeping = replace(TRAINING, targets="cached", keep_states=True).keeping
    assert keeping is not None

    def source(training: OutputKL, student: Runner, ids: Tensor) -> Source:
        return Cached(training, student, ids, keeping, Cache(folder), {"model": "bench"})

    loop = case.loop(source)
    made = loop.source
    assert isinstance(made, Cached)
    made.prepare(made.missing(), lambda: None)
    files: Sequence[Path] = [file for kind in made.kinds for file in (folder / kind).glob("*.safetensors")]
    header = 1024  # of a file
    return loop, (sum(file.stat().st_size for file in files) - header * len(files)) / made.ids.numel()


def _validation_loss(case: Case, operator: nn.Module) -> float:
    return replace(case, operator=operator).loop().validation.loss()
