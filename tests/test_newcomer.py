"""A newcomer's way: the README alone, a model folder and a text of one's own, no command that fails.

The commands and the Python of the README are read from it, so that what is tested is what it says.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_model

from linearpatch.data.pydoc import PydocCorpus
from linearpatch.models.random import byte_tokenizer

README = (Path(__file__).parents[1] / "README.md").read_text()
WORDS = 3000


@pytest.fixture
def folder(tmp_path):
    """What a newcomer has: `my-model` and `my.txt` (and `other.txt`)."""
    model = tiny_model(num_hidden_layers=12, vocab_size=512, max_position_embeddings=2048)
    model.save_pretrained(tmp_path / "my-model")
    byte_tokenizer().save_pretrained(tmp_path / "my-model")
    words = "\n\n".join(PydocCorpus().documents("evaluation")).split(" ")
    (tmp_path / "my.txt").write_text(" ".join(words[:WORDS]))
    (tmp_path / "other.txt").write_text(" ".join(words[WORDS : 2 * WORDS]))
    return tmp_path


def section(title):
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", README, re.DOTALL | re.MULTILINE)
    return text


def run(folder, *command):
    """A command in a process of its own, as in a shell."""
    environment = {**os.environ, "LINEARPATCH_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_readme_alone_leads_to_a_repaired_model(folder):
    own = section("Prune your own model, with your own text")
    (commands,) = re.findall(r"```bash\n(.*?)```", own, re.DOTALL)
    printed = [
        run(folder, sys.executable, "-m", "linearpatch.cli", *shlex.split(line)[1:]) for line in commands.splitlines()
    ]
    assert "7 of 12 layers removed by patch_aware" in printed[0]
    assert "ppl/text" in printed[0]
    assert (folder / "outputs/mine/model/README.md").exists()
    python = "".join(re.findall(r"```python\n(.*?)```", own, re.DOTALL))
    python = python.replace(
        'lp.load_model("smollm2_135m")',
        '(lambda m: (m.AutoModelForCausalLM.from_pretrained("my-model"), m.AutoTokenizer.from_pretrained("my-model")))'
        '(__import__("transformers"))',
    )
    assert "from_pretrained" in python
    assert "smollm2_135m" not in python
    found = run(folder, sys.executable, "-c", python)
    assert re.match(r"\(\d+(, \d+){6}\) [\d.]+", found)
    assert (folder / "small" / "model.safetensors").exists()
