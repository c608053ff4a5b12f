"""The public functions: from a Hugging Face model in memory to a smaller one, in a few calls and without Hydra.

    import linearpatch as lp

    data = lp.tokens("my.txt", tokenizer, blocks=40, length=1024)
    edit = lp.prune(model, data, num_layers=7)
    edit = lp.repair(model, edit, data)
    small = edit.apply(model)
    lp.save("small", model, tokenizer, edit)

Where a component is asked for, give its name with its settings as keyword arguments, or the component itself, such as
`lp.pruners.PatchAware(search="beam")`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel

from linearpatch.arguments import check_tokens, evaluating, require_edit, require_folder, require_tokens
from linearpatch.calibration.comparison import repair as repair_compared
from linearpatch.calibration.workspace import Workspace
from linearpatch.checkpoint.loading import apply, load, load_tokenizer
from linearpatch.checkpoint.saving import save_checkpoint
from linearpatch.choices import component_of
from linearpatch.data.documents import Chat
from linearpatch.data.generated import GeneratedCorpus
from linearpatch.data.tokens import Tokens, tokens
from linearpatch.distillation.distill import distill as train
from linearpatch.distillation.training import Training
from linearpatch.errors import ConfigError, named_as, require_tokenizer, require_whole
from linearpatch.measuring import evaluate, perplexity
from linearpatch.models.decoder import Decoder
from linearpatch.models.edit import Edit
from linearpatch.models.fingerprint import weights_hash
from linearpatch.models.model import LoadedModel, check_vocabulary
from linearpatch.models.origins import origin_of
from linearpatch.models.rebuilding import check_removal
from linearpatch.models.units import check_removed
from linearpatch.models.vision import processor_files
from linearpatch.patches.none import NoPatch
from linearpatch.patches.patch import Patch
from linearpatch.pruners.pruner import Pruner
from linearpatch.registry import resolve
from linearpatch.storage.cache import Cache

log = logging.getLogger(__name__)

C = TypeVar("C")

DATA = {  # settings of the calibration, which belong to the tokens that a function is given
    "calibration.held_out_blocks": "held_out of linearpatch.tokens",
    "calibration.num_blocks": "blocks of linearpatch.tokens",
    "calibration.block_length": "length of linearpatch.tokens",
}

__all__ = [
    "Tokens", "apply", "distill", "evaluate", "generate_texts", "load", "load_tokenizer", "perplexity", "prune",
    "repair", "save", "tokens",
]  # fmt: skip


@named_as({"corpus.": ""})
def generate_texts(
    model: PreTrainedModel,
    tokenizer: Any,
    number: int = 64,
    length: int = 1024,
    *,
    part: str = "calibration",
    cache_dir: str | Path | None = None,
    **settings: Any,
) -> list[str | list[dict[str, Any]]]:
    """Let a model generate texts, for `tokens` or as the text of `evaluate`; what `corpus=generated` reads.

        data = lp.tokens(lp.generate_texts(model, tokenizer), tokenizer, blocks=40)

    Args:
        model: The dense model.
        tokenizer: Its tokenizer.
        number: Sequences, each of which may hold several documents.
        length: Tokens in each.
        part: `calibration`, `distillation` or `evaluation`: each has random numbers of its own.
        cache_dir: Keeps what was generated, so that an interrupted generation resumes; None keeps nothing.
        settings: Of the corpus, such as `temperature`, `top_p`, `seed`, `conversations=True` and `prompts` (at least
            three different ones: each part has its own).

    Returns:
        Documents: texts, or with `conversations` chats (lists of `role` and `content`).

    Raises:
        ConfigError: there is no such setting, or it can't be with this model.
        DataError: the tokenizer has no token to begin with, or no chat template.
    """
    corpus = resolve("corpus", "generated", GeneratedCorpus, {"number": number, "length": length, **settings})
    with evaluating(model, prunable=False) as decoder:
        check_vocabulary(decoder, tokenizer)
        corpus.check_model(decoder.config)
        loaded = LoadedModel(decoder, tokenizer, weights_hash(model))
        cache = Cache(Path(cache_dir)) if cache_dir else Cache()
        documents = corpus.documents(part).generate(loaded, cache)
    return [[dict(said) for said in text.messages] if isinstance(text, Chat) else text for text in documents]


@named_as({"num_pruned_layers": "num_layers", "pruner.": "", **DATA})
def prune(
    model: PreTrainedModel,
    data: Tokens,
    num_layers: int,
    *,
    pruner: str | Pruner = "patch_aware",
    patch: str | Patch = "refit_auto",
    **settings: Any,
) -> Edit:
    """Choose the layers to remove; the model doesn't change.

    Args:
        model: The dense model.
        data: Calibration tokens.
        num_layers: How many layers to remove; how many sublayers, where the pruner has another `unit`.
        pruner: Its name or itself; `linearpatch list pruner` shows all.
        patch: What will repair the model, for pruners that measure patched models (`patch_aware`).
        settings: Of the pruner. If it is given by name, the rest come from its YAML, as on the command line.

    Raises:
        ConfigError: there is no such pruner or setting, or so many layers can't be removed.
        ModelError: the model can't be pruned.
    """
    require_whole("num_layers", num_layers)
    require_tokens(data)
    chosen = _component("pruner", pruner, Pruner, settings)  # type: ignore[type-abstract]
    repairer = _component("patch", patch, Patch, {})  # type: ignore[type-abstract]
    with evaluating(model) as dense:
        repairer = repairer.for_model(dense)
        chosen.check(dense.num_layers, num_layers)
        chosen.check_family(dense)
        workspace = _workspace(dense, data, repairer)
        edit = chosen.choose(workspace, num_layers)
        check_removal(dense, edit.view(dense), edit.removed_layers, edit.narrowed, edit.removed_parts)
    log.info("%s", edit.summary())
    return edit


@named_as({"patch.": "", **DATA})
def repair(
    model: PreTrainedModel, edit: Edit, data: Tokens, *, patch: str | Patch = "refit_auto", **settings: Any
) -> Edit:
    """Fit a patch at each interface; the model doesn't change.

    Where tokens are held out, the fit is compared on them with simpler ones and with no patch, and the best is kept.

    Args:
        model: The dense model.
        edit: What is removed.
        data: Calibration tokens.
        patch: Its name or itself; `linearpatch list patch` shows all. `refit_auto`, which `experiment=recommended`
            fits, needs held-out tokens.
        settings: Of the patch. If it is given by name, the rest come from its YAML, as on the command line.

    Raises:
        ConfigError: there is no such patch or setting, or the patch can't be used with this edit.
        ModelError: the model's family doesn't support the patch.
        NumericsError: the fit has no unique solution.
    """
    require_tokens(data)
    require_edit(edit)
    chosen = _component("patch", patch, Patch, settings)  # type: ignore[type-abstract]
    with evaluating(model) as dense:
        check_removed(edit.removed, dense.num_layers)
        chosen = chosen.for_model(dense)
        chosen.check(dense)
        repaired = repair_compared(_workspace(dense, data, chosen), chosen, edit.with_operators(()))
    for warning in repaired.warnings(chosen):
        log.warning("%s", warning)
    return repaired.edit


@named_as({"distill.": "", **DATA})
def distill(
    model: PreTrainedModel,
    edit: Edit,
    data: Tokens,
    *,
    loss: str | Training = "output_kl",
    seed: int = 0,
    cache_dir: str | Path | None = None,
    **settings: Any,
) -> Edit:
    """Train the patches, and other weights if `trainable` says so; the dense model doesn't change.

    Args:
        model: The dense model.
        edit: With its operators.
        data: What is trained on; the tokens held out decide which step is kept.
        loss: Its name or itself; `linearpatch list distill` shows all.
        seed: Of the order of the text.
        cache_dir: Keeps targets and states on disk, so that an interrupted training resumes; None keeps none.
        settings: Of the loss, where it is named, such as `learning_rate`, or `trainable`: what trains beside patches.

    Raises:
        ConfigError: there is no such loss or setting, nothing to train, or no tokens are held out.
        TrainingFailed: the loss isn't finite any more.
    """
    require_tokens(data)
    require_edit(edit)
    chosen = _component("distill", loss, Training, settings)  # type: ignore[type-abstract]
    if data.held_out is None:
        raise ConfigError("No tokens are held out to decide which step is kept. Give tokens(…, held_out=16).")
    with evaluating(model) as dense:
        check_tokens(dense, data)
        chosen.check(dense)
        key = _key(dense)
        cache = Cache(Path(cache_dir)) if cache_dir else Cache()
        return train(chosen, dense, edit, data.blocks, data.held_out, cache=cache, model_key=key, seed=seed).edit


def save(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: Any,
    edit: Edit,
    *,
    save_format: str = "auto",
    gguf_type: str = "auto",
    name: str = "",
    hub_id: str = "",
    license: str = "",
) -> None:
    """Write the edited model as a checkpoint; `linearpatch.load` or transformers loads it.

    Args:
        folder: Where to write. An existing linearpatch checkpoint is replaced; anything else there is an error.
        model: The dense model.
        tokenizer: Its tokenizer, which is saved with it.
        edit: What is removed, and the operators.
        save_format: `plain`, `custom`, `adapter`, `lora`, `gguf`, `nemotron_nas`, or `auto`: plain where stock weights
            can hold the operators, else custom.
        gguf_type: Of the matrices in a GGUF file: `f32`, `f16`, `bf16` or `q8_0`; `auto` is the model's own.
        name: Of the dense model, for the model card; empty takes the model's own.
        hub_id: Of the dense model, as the card's `base_model`; empty takes what it was loaded from, if that is one.
        license: Of the dense model; empty takes what is known of it.

    Raises:
        ModelError: the family can't hold the edit in this format, or would load as another model.
        StorageError: the folder can't be written, or holds something else.
    """
    require_folder(folder)
    require_edit(edit)
    require_tokenizer(tokenizer)
    with evaluating(model) as dense:
        origin = origin_of(model)
        processor = processor_files(model.config, getattr(model.config, "_name_or_path", ""), local_files_only=True)
        loaded = LoadedModel(dense, tokenizer, weights_hash(model), processor)
        save_checkpoint(
            folder,
            loaded,
            edit,
            save_format=save_format,
            gguf_type=gguf_type,
            name=name or origin.name,
            source=origin.source,
            hub_id=hub_id or origin.hub_id,
            license=license or origin.license,
        )


def _component(group: str, choice: str | C, kind: type[C], settings: Mapping[str, Any]) -> C:
    """A component from its name and settings, or one that is given already, with settings changed.

    Raises:
        ConfigError: there is no such component or setting, or it is of another group.
    """
    if not isinstance(choice, str):
        return resolve(group, choice, kind, settings)
    name, preset = component_of(group, choice)
    return resolve(group, name, kind, {**preset, **settings})


def _key(dense: Decoder) -> Mapping[str, Any]:
    return LoadedModel(dense, None, weights_hash(dense.model)).key


def _workspace(dense: Decoder, data: Tokens, patch: Patch) -> Workspace:
    check_tokens(dense, data)
    repairer = None if isinstance(patch, NoPatch) else patch
    return Workspace(
        dense, data.blocks, held_out=data.held_out, patch=repairer, cache=data.cache, model_key=_key(dense)
    )
