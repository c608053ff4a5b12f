"""Families get the verdict that the documentation states: some peculiar ones here, `make families` tries all."""

import pytest
import transformers
from table import PAGE, committed_verdicts
from verdicts import families, verdict_on

PECULIAR = ("diffllama", "ernie4_5_moe")
OTHERS = (
    "bamba", "gpt2", "llama4_text", "nanochat",
    "cohere2", "deepseek_v3", "gemma3_text", "gemma4_text", "glm4_moe", "gpt_neo", "gpt_oss", "granitemoehybrid",
    "lfm2", "llama", "mamba2", "mistral3", "mixtral", "olmo2", "openai-gpt", "phi3", "qwen2_vl", "qwen3_moe",
    "qwen3_next",
)  # fmt: skip


@pytest.mark.parametrize("family", [*PECULIAR, *(pytest.param(one, marks=pytest.mark.slow) for one in OTHERS)])
def test_the_verdict_on_a_family_is_the_committed_one(family):
    assert verdict_on(family).kind == committed_verdicts()[family]


def test_the_page_has_every_family():
    page = PAGE.read_text(encoding="utf-8")
    assert "FAULT" not in page
    if f"with transformers {transformers.__version__}:" not in page:
        pytest.skip("the page is of another version of transformers, which has other families")
    assert set(committed_verdicts()) == set(families())
