"""The model card: what was removed, how it was patched, what that cost, and how to load the result."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

from huggingface_hub import ModelCard, ModelCardData
from omegaconf import OmegaConf

from linearpatch.checkpoint.manifest import Manifest
from linearpatch.models.sublayers import ATTENTION, MLP
from linearpatch.models.units import LAYER, Unit, interfaces_of
from linearpatch.registry import components
from linearpatch.report.markdown import markdown_table
from linearpatch.report.run_table import run_table
from linearpatch.results.display import chosen, metric_names
from linearpatch.results.record import Record
from linearpatch.results.sections import DistillationSection
from linearpatch.results.stages import STAGES
from linearpatch.text import counted, layer_list, printable

LOADING = {
    "plain": """\
A stock checkpoint of its family: no custom code, no added parameters.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
```""",
    "gguf": """\
One file for llama.cpp and the tools built on it: no custom code.

```bash
llama-server -m {folder}/model.gguf
llama-quantize {folder}/model.gguf smaller.gguf Q4_K_M    # types that linearpatch doesn't write
```""",
    "nemotron_nas": """\
A checkpoint of the family `nemotron-nas`, whose layers may lack attention: the patches are stored as such layers. vLLM
and MLX support the family; `configuration_nemotron_nas.py` only reads config.json. Not tested in either by linearpatch.

```bash
vllm serve {folder} --trust-remote-code
mlx_lm.generate --model {folder} --prompt "The capital of France is"
```""",
    "adapter": """\
Only the list of removed layers and the patches, without the dense model's weights. The package `linearpatch` applies
them to the dense model, whose weights must be those named below:

```python
import linearpatch
from transformers import AutoModelForCausalLM

dense = AutoModelForCausalLM.from_pretrained("{base}")
model = linearpatch.apply(dense, "{folder}")
```""",
    "custom": """\
`modeling_linearpatch.py` beside the weights adds to the family's class what it can't describe: {addition}.

```python
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{folder}", config=AutoConfig.for_model("{family}"))  # a stock tokenizer
```

Where the linearpatch package is installed, no remote code is needed:

```python
import linearpatch

model, tokenizer = linearpatch.load("{folder}"), linearpatch.load_tokenizer("{folder}")
```""",
}

LORA = """\
The trained LoRA adapter is in `lora/` and isn't merged into these weights. `linearpatch.load` merges it; with peft,
load it on top of the model:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(model, "{folder}/lora")
```"""


def model_card(manifest: Manifest, record: Record | None) -> str:
    """The text of a checkpoint's README.md.

    Args:
        manifest: What is saved.
        record: The run that made it; without one the card has no results and no settings.
    """
    base = manifest.base
    addition = "the patch, a module of its own" if manifest.units else "the sizes of narrower layers"
    if manifest.removed:
        addition = "which sublayers are removed, and the patches"
    data = ModelCardData(
        base_model=base.hub_id or None,
        license=base.license or None,
        library_name={"gguf": "gguf", "adapter": "linearpatch"}.get(manifest.format, "transformers"),
        pipeline_tag="text-generation",
        tags=["linearpatch", "depth-pruning"],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title(manifest)}",
        _what(manifest, record),
        "## Load it\n\n" + _loading(manifest, addition),
        *([LORA.format(folder="FOLDER")] if manifest.lora else []),
        *([_results(record), _settings(manifest, record)] if record else []),
        _origin(manifest),
    ]
    return str(ModelCard(printable("\n\n".join(sections)) + "\n"))


def _loading(manifest: Manifest, addition: str) -> str:
    base = manifest.base
    names = {"folder": "FOLDER", "family": base.model_type, "addition": addition, "base": base.hub_id or base.name}
    return LOADING[manifest.format].format(**names)


def title(manifest: Manifest) -> str:
    """What is left of which model, in a few words."""
    base = manifest.base
    if manifest.removed:
        return f"{base.name} without {_counted(manifest.units)} of its {base.num_layers} layers"
    if not manifest.removed_layers:
        return f"{base.name} with narrower layers"
    return f"{base.name} without {len(manifest.removed_layers)} of {base.num_layers} layers"


def _counted(units: Sequence[Unit]) -> str:
    """Numbers of layers, attentions and MLPs in words."""
    names = {LAYER: "layer", ATTENTION: "attention", MLP: "MLP"}
    numbers = {part: sum(unit.part == part for unit in units) for part in names}
    return " and ".join(counted(number, names[part]) for part, number in numbers.items() if number)


def _what(manifest: Manifest, record: Record | None) -> str:
    if not manifest.units:
        chosen = ""
        if record and record.pruning:
            chosen = f", chosen by `{_pruner(record)}` ({record.pruning.ratio:.1%} of all parameters)"
        return (
            f"- **Removed**: attention heads and MLP channels of some layers{chosen}. `linear_sizes` in config.json "
            "has the size of each matrix that is smaller. No layer is removed."
        )
    interfaces = ", ".join(map(str, interfaces_of(manifest.units)))
    layers = "layer" if len(manifest.removed_layers) == 1 else "layers"
    removed = f"{layers} {layer_list(manifest.removed_layers)} of the dense model, counted from 0"
    if manifest.removed:
        removed = f"{', '.join(map(str, manifest.removed))} of the dense model, layers counted from 0"
    patched = "nothing: the layers before and after an interface are connected directly"
    if manifest.patches:
        patched = f"{_operators(manifest)} at each interface"
    if record and record.pruning:
        removed += f", chosen by `{_pruner(record)}` ({record.pruning.ratio:.1%} of all parameters)"
    if record and record.patch and manifest.patches:
        patched = f"`{_patch(record)}` at each interface: {_purpose(record.patch.method)}"
        if record.distillation:
            patched = f"a linear operator at each interface, which began as `{_patch(record)}` and was distilled"
    if manifest.patches and manifest.format not in ("custom", "adapter"):
        patched += ", as layers of their own" if manifest.num_new_layers else ", folded into existing weights"
    cuts = "i + 0.5 lies between a layer's attention and its MLP" if manifest.removed else "first removed, next kept"
    lines = [f"- **Removed**: {removed}. Interfaces ({cuts}): {interfaces}."]
    lines.append(f"- **Patched** with {patched}.")
    if record and record.distillation:
        lines.append(f"- **Trained**: {_trained(record.distillation)}")
    return "\n".join(lines)


TRAINED = {
    "patch": "the patch",
    "lora": "LoRA updates of the kept layers' matrices",
    "norms": "norms and biases",
    "neighbours": "the layers next to each interface",
    "last_layers": "the last layers",
    "all": "all weights after the embeddings",
}


def _trained(section: DistillationSection) -> str:
    losses = section.validation_loss
    what = TRAINED.get(section.settings.get("trainable", "patch"), "weights")
    return (
        f"{what}, {section.num_trained:,} parameters, against the dense model (`{section.method}`, "
        f"{section.num_blocks:,} sequences of {section.block_length:,} tokens of {section.settings['corpus']}, "
        f"validation loss {losses['first']:.4f} to {losses['best']:.4f})."
    )


def _pruner(record: Record) -> str:
    return chosen(record, "pruner", record.pruning.method) if record.pruning else ""


def _patch(record: Record) -> str:
    return chosen(record, "patch", record.patch.method) if record.patch else ""


def _operators(manifest: Manifest) -> str:
    """The operators at an interface: `linear_map` and the like."""
    names = list(dict.fromkeys(str(entry.operator["operator"]) for entry in manifest.patches))
    return " and ".join(f"`{name}`" for name in names)


def _purpose(patch: str) -> str:
    """The first line of what a patch says of itself."""
    cls = components("patch").get(patch)
    return (inspect.getdoc(cls) or "").split("\n")[0].rstrip(".") if cls else "an operator of another package"


def _results(record: Record) -> str:
    names = metric_names([record])
    stages = [stage for stage in STAGES if stage in record.metrics]
    if not names:
        return "## Results\n\nNothing was measured."
    table = run_table(record)
    is_patched = record.patch is not None and record.patch.method != "none"
    last = "distilled" if record.distillation else "patched" if is_patched else "pruned"
    if stages[-1] != last:
        unmeasured = "The saved model itself was not measured: the run's stages left it out."
        table = replace(table, notes=(*table.notes, unmeasured))
    return f"## Results\n\n{markdown_table(table).rstrip()}"


def _settings(manifest: Manifest, record: Record) -> str:
    made = manifest.provenance
    packages = ", ".join(f"{name} {version}" for name, version in record.environment.packages.items())
    command = f"```bash\n{made['command']}\n```\n\n" if made["command"] else ""
    return (
        f"## How it was made\n\n{command}Run `{record.run_id}`, with {packages}. The exact "
        f"configuration:\n\n```yaml\n{OmegaConf.to_yaml(OmegaConf.create(made['config'])).strip()}\n```"
    )


def _origin(manifest: Manifest) -> str:
    base, parent = manifest.base, manifest.provenance.get("parent")
    source = f"{base.name} ({base.source})" if base.source not in ("", base.name) else base.name
    license = f"its licence ({base.license}) applies" if base.license else "its licence applies; look it up there"
    lines = [f"The dense model is {source}, weights `{base.fingerprint}`, {base.dtype}; {license}."]
    if parent:
        first, removed = parent["base"], layer_list(parent["removed_layers"])
        lines.append(
            f"It was already pruned: it is {first['name']} ({first['source']}) without layers {removed} of "
            f"{first['num_layers']}."
        )
    return "## Origin\n\n" + " ".join(lines)
