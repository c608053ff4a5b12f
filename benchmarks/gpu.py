"""What a GPU must show, in one command: recipe, distillation and speed at Llama-3-8B's shape; two jobs on a card.

Nothing is downloaded: weights are random, the text is the embedded one. Without a GPU the same steps run on a small
shape, so that the command is known to work before it meets one; such a table says that it is not a GPU's.
"""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks import distill_8b
from benchmarks.jobs_on_a_card import sharing_claims
from benchmarks.measure import Claim, text_blocks, time_ratio
from benchmarks.statistics import collect
from linearpatch.calibration.gradients import first_order_importance
from linearpatch.calibration.workspace import Workspace
from linearpatch.config import compose_experiment
from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.errors import LinearPatchError
from linearpatch.evaluation.evaluation import Subject
from linearpatch.evaluation.speed import Speed
from linearpatch.models.edit import DENSE, Edit
from linearpatch.models.model import LoadedModel, ready
from linearpatch.runtime.memory import peak_growth
from linearpatch.storage.cache import Cache, default_cache_dir

log = logging.getLogger(__name__)

FOLDER = Path("benchmarks/gpu")  # of the tables, one for each card


@dataclass(frozen=True)
class Shape:
    """How large the work is.

    Attributes:
        settings: Of the random Llama.
        removed: Layers that go.
        blocks: Blocks of calibration tokens, those held out included.
        length: Tokens of a block, of a prompt and of a training sequence.
        repeats: Of each timing.
    """

    settings: dict[str, int]
    removed: int
    blocks: int
    length: int
    repeats: int


LLAMA_3_8B = Shape(distill_8b.SHAPE, removed=7, blocks=48, length=2048, repeats=10)
LLAMA_2_13B = Shape(
    {"vocab_size": 32_000, "hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 40,
     "num_attention_heads": 40, "num_key_value_heads": 40, "max_position_embeddings": 4096},
    removed=8, blocks=24, length=1024, repeats=1,
)  # fmt: skip
SMALL = Shape(
    {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
     "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    removed=3, blocks=24, length=128, repeats=2,
)  # fmt: skip


def claims() -> list[Claim]:
    """All steps, each by itself: one that fails is a row of the table, and the others still run."""
    shape, larger = (LLAMA_3_8B, LLAMA_2_13B) if torch.cuda.is_available() else (SMALL, SMALL)
    bench = GpuBench(shape)
    steps: dict[str, Callable[[], Sequence[Claim]]] = {
        "tests marked gpu": marked_tests,
        "recommended recipe": bench.recipe_claims,
        "statistics": bench.statistics_claims,
        "Taylor": bench.taylor_claims,
        "speed": bench.speed_claims,
        "distillation": bench.distillation_claims,
        "two jobs on one device": sharing_claims,
        # Models of their own, last, when the first is of no more use.
        "4 bits": lambda: [GpuBench(shape, in_4_bits=True).memory_claim()],
        "13B": lambda: [GpuBench(larger).memory_claim()],
    }
    claims_so_far: list[Claim] = []
    for name, step in steps.items():
        if name == "4 bits":
            bench.forget()
        started = time.perf_counter()
        try:
            claims_so_far += step()
        except (LinearPatchError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            log.exception("%s", name)
            claims_so_far.append(Claim(f"{name}: failed", 1, 0, "", " ".join(str(error).split())[:200]))
        log.info("%s: %.0f s", name, time.perf_counter() - started)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write_table(claims_so_far, shape)
    return claims_so_far


class GpuBench:
    """One model of a shape, and what is measured on it.

    Args:
        shape: Sizes of the model and of the work.
        in_4_bits: Whether the matrices of its layers are quantised (bitsandbytes, nf4).
    """

    def __init__(self, shape: Shape, *, in_4_bits: bool = False) -> None:
        self.shape = shape
        self.in_4_bits = in_4_bits

    @cached_property
    def model(self) -> LoadedModel:
        """The random model in bfloat16, on the device that a run would use."""
        settings = [f"model.settings.{name}={value}" for name, value in self.shape.settings.items()]
        model = compose_experiment(["model=random", "model.dtype=bfloat16", *settings]).model.load(default_cache_dir())
        return quantised(model) if self.in_4_bits else model

    def forget(self) -> None:
        """Give the model's memory back."""
        for name in ("model", "ids", "recipe"):
            self.__dict__.pop(name, None)
        gc.collect()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.decoder.input_device

    @cached_property
    def ids(self) -> Tensor:
        """One block of text on the device."""
        return text_blocks(self.model, 1, self.shape.length).ids.to(self.device)

    @cached_property
    def recipe(self) -> tuple[Edit, Claim, int | None]:
        """Layers and patches of the recommended recipe, what they took, and bytes beside the weights."""
        experiment = compose_experiment(
            [
                "experiment=recommended",
                "corpus=pydoc",
                "calibration.corpus=null",
                f"num_pruned_layers={self.shape.removed}",
            ]
        )
        experiment = experiment.for_model(self.model.decoder)
        count = self.shape.blocks - experiment.num_held_out
        reader = experiment.calibration_reader
        text = reader.read(BlockSpec(self.shape.blocks, self.shape.length), self.model.tokenizer)
        blocks, held_out = (TokenBlocks(ids, text.source) for ids in text.ids.split([count, len(text.ids) - count]))
        workspace = Workspace(self.model.decoder, blocks, held_out=held_out, patch=experiment.patch)
        edit = DENSE
        seconds: list[float] = []

        def work() -> None:
            nonlocal edit
            started = time.perf_counter()
            workspace.collect(*experiment.pruner.chooser.statistics(self.shape.removed), *experiment.patch.statistics())
            pruned = experiment.pruner.choose(workspace, self.shape.removed)
            seconds.append(time.perf_counter() - started)
            edit = experiment.patch.repair(workspace, pruned)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)

        growth = peak_growth(work, self.device)
        chosen, whole = seconds
        detail = (
            f"{self.shape.removed} of {self.model.decoder.num_layers} layers, {self.shape.blocks} × "
            f"{self.shape.length:,} tokens, {len(held_out.ids)} blocks held out; layers {chosen:.0f} s, last fit "
            f"{whole - chosen:.0f} s; memory beside the weights {_gib(growth)}"
        )
        return edit, Claim("layers and patches of the recommended recipe", whole, 180, "s", detail), growth

    @property
    def weights(self) -> int:
        """Bytes of the model's weights."""
        return sum(p.numel() * p.element_size() for p in self.model.decoder.model.parameters())

    @torch.no_grad()
    def forward(self) -> None:
        """One forward pass over one block."""
        self.model.decoder.model(input_ids=self.ids, use_cache=False)

    def memory_claim(self) -> Claim:
        """The recipe in at most 1.3 times the memory of weights and a forward pass."""
        self.forward()  # what only the first pass allocates is of neither
        _, took, growth = self.recipe
        batch = peak_growth(self.forward, self.device)
        if growth is None or batch is None:
            raise OSError("this system keeps no record of a process' peak memory")
        name = f"{self.shape.settings['num_hidden_layers']} layers of width {self.shape.settings['hidden_size']:,}"
        what = f"{name}{' in 4 bits' if self.in_4_bits else ''}: memory of the recipe / weights and a batch"
        detail = f"{took.measured:.0f} s; {_gib(self.weights + growth)} / {_gib(self.weights + batch)}; {took.detail}"
        return Claim(what, (self.weights + growth) / (self.weights + batch), 1.3, "", detail)

    def recipe_claims(self) -> list[Claim]:
        """The whole recipe in at most three minutes."""
        return [self.recipe[1]]

    def statistics_claims(self) -> list[Claim]:
        """All statistics of the ranking pass against a bare pass."""
        body = self.model.decoder.model.base_model

        @torch.no_grad()
        def bare() -> None:
            body(input_ids=self.ids, use_cache=False)

        with_statistics = lambda: collect(self.model, self.ids)  # noqa: E731
        ratio, ours, other = time_ratio(with_statistics, bare, repeats=self.shape.repeats)
        detail = f"1 × {self.shape.length:,} tokens: {1000 * ours:.0f} ms / {1000 * other:.0f} ms"
        return [Claim("all statistics of a ranking pass / bare forward pass", ratio, 1.15, "", detail)]

    def taylor_claims(self) -> list[Claim]:
        """First-order importance in the memory of a forward pass."""
        weights = self.weights
        started = time.perf_counter()
        ours = peak_growth(lambda: first_order_importance(self.model.decoder, [self.ids]), self.device)
        seconds = time.perf_counter() - started
        other = peak_growth(self.forward, self.device)
        if ours is None or other is None:
            return []
        detail = f"1 × {self.shape.length:,} tokens, {seconds:.1f} s; beside the weights {_gib(ours)} / {_gib(other)}"
        return [
            Claim("Taylor: peak memory / forward pass", (ours + weights) / (other + weights), 1.3, "", detail),
        ]

    def speed_claims(self) -> list[Claim]:
        """Prefill and decoding of the pruned and patched models against dense; a patch costs at most 1 %."""
        patched, _, _ = self.recipe
        dense = self.model.decoder
        stages = {"dense": DENSE, "pruned": patched.with_operators(()), "patched": patched}
        subjects = [Subject(stage, edit.decoder(dense), dense, edit) for stage, edit in stages.items()]
        speed = Speed(lengths=[self.shape.length], new_tokens=64, rounds=2 * self.shape.repeats)
        (measurement,) = speed.prepare("speed", compose_experiment([]).evaluation_reader)(self.model, Cache())
        results = {
            subject.stage: measured.metrics
            for subject, measured in zip(subjects, measurement.run(subjects, lambda _: None), strict=True)
        }
        claims = []
        for what, limits in {"prefill_s": (0.85, 1.01), "decode_step_s": (0.85, 1.01)}.items():
            times = {stage: metrics[f"speed/{what}"] for stage, metrics in results.items()}
            values = " / ".join(f"{1000 * (times[stage].value or 0):.2f} ms" for stage in results)
            for (stage, base), limit in zip((("pruned", "dense"), ("patched", "pruned")), limits, strict=True):
                versus = times[stage].versus[base]
                detail = f"dense / pruned / patched {values}; quartiles {versus['low']:.3f} to {versus['high']:.3f}"
                claims.append(Claim(f"speed: {what}, {stage} / {base}", versus["ratio"], limit, "", detail))
        return claims

    def distillation_claims(self) -> list[Claim]:
        """A step, an epoch, and the time that the published training would take."""
        return distill_8b.claims_on(self.model, self.shape.length, self.shape.removed, repeats=self.shape.repeats)


def quantised(model: LoadedModel) -> LoadedModel:
    """The same with the matrices of its layers in 4 bits, as bitsandbytes keeps them."""
    bits: Any = import_module("bitsandbytes.nn")

    for layer in model.decoder.layers:
        for name, matrix in [(name, part) for name, part in layer.named_modules() if isinstance(part, nn.Linear)]:
            small = bits.Linear4bit(
                matrix.in_features, matrix.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            small.weight = bits.Params4bit(matrix.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, small.to(model.decoder.input_device))
    return ready(model.decoder.model, model.tokenizer, f"{model.fingerprint}-nf4")


def marked_tests() -> list[Claim]:
    """The tests marked gpu, in a process of their own; none without a GPU or without the tests."""
    if not torch.cuda.is_available() or not Path("tests/conftest.py").is_file():
        return []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    log.info("%s", done.stdout[-4000:])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    wrong = counts.get("failed", 0) + counts.get("error", 0) + (not counts.get("passed"))
    detail = ", ".join(f"{number} {word}" for word, number in counts.items()) or done.stdout[-200:]
    return [Claim("tests marked gpu that fail", wrong, 0, "", detail)]


def write_table(claims: Sequence[Claim], shape: Shape) -> Path:
    """Write a Markdown table named after the card; the answer is its file."""
    cuda = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if cuda else "no GPU"
    file = FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.md"
    title = card if cuda else "Not a GPU's: a rehearsal on the CPU"
    sizes = ", ".join(f"{name} {value:,}" for name, value in shape.settings.items())
    lines = [
        f"# {title}",
        "",
        f"`linearpatch bench gpu`, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {sys.version.split()[0]}. A Llama with random weights in bfloat16: {sizes}.",
        "",
        "| claim | measured | limit | measured / limit | on |",
        "|---|---:|---:|---:|---|",
        *(_row(claim) for claim in claims),
        "",
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def _row(claim: Claim) -> str:
    measured, limit = (f"{value:.3g} {claim.unit}".strip() for value in (claim.measured, claim.limit))
    ratio = f"{claim.measured / claim.limit:.2f}" if claim.limit else ("kept" if claim.measured <= 0 else "broken")
    return f"| {claim.what} | {measured} | {limit} | {ratio} | {claim.detail} |"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
