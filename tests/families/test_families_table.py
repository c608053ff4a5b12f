"""The families that matter most get the verdict that the documentation states; `make families` tries all of them."""

import pytest
from table import PAGE, committed_verdicts
from verdicts import families, verdict_on

IMPORTANT = (
    "bamba", "cohere2", "deepseek_v3", "diffllama", "ernie4_5_moe", "gemma3_text", "gemma4_text", "glm4_moe", "gpt2",
    "gpt_neo", "gpt_oss", "granitemoehybrid", "lfm2", "llama", "llama4_text", "mamba2", "mistral3", "mixtral", "olmo2",
    "openai-gpt", "phi3", "qwen2_vl", "qwen3_moe", "qwen3_next",
)  # fmt: skip


@pytest.mark.parametrize("family", IMPORTANT)
def test_the_verdict_on_a_family_is_the_committed_one(family):
    assert verdict_on(family).kind == committed_verdicts()[family]


def test_the_page_has_every_family():
    assert set(committed_verdicts()) == set(families())
    assert "FAULT" not in PAGE.read_text(encoding="utf-8")
