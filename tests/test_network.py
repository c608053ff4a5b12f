"""Nothing is asked of the hub that nobody needs, and planning writes nothing."""

import json
import socket

import datasets
import pytest
from conftest import lm_eval_task, tiny_model
from huggingface_hub import constants
from small_runs import run

from linearpatch.data import hub_access
from linearpatch.models.embedded import EmbeddedModel
from linearpatch.models.hub import HubModel
from linearpatch.models.random import byte_tokenizer

LOCAL = ("localhost", "127.0.0.1", "::1", None, "")


@pytest.fixture
def asked(monkeypatch):
    """Hosts that somebody wanted to reach, with the hub allowed."""
    hosts = []

    def reject(address, *_, **__):
        host = address[0] if isinstance(address, tuple) else address
        host = host.decode() if isinstance(host, bytes) else host
        hosts.append(host)
        raise socket.gaierror(f"no network for {host}")

    resolve, connect = socket.getaddrinfo, socket.socket.connect
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: (resolve if host in LOCAL else reject)(host, *rest, **named)
    )
    monkeypatch.setattr(
        socket.socket,
        "connect",
        lambda self, address: (
            reject(address)
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOCAL
            else connect(self, address)
        ),
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub_access.hub_answers.cache_clear()
    yield hosts
    hub_access.hub_answers.cache_clear()


@pytest.fixture
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    tiny_model(vocab_size=512).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_fixture_sees_who_asks(asked):
    assert not hub_access.hub_answers()
    assert asked == ["huggingface.co"]


PLANS = {
    "random": ("model=random",),
    "smoke": ("model=random", "eval=[smoke]"),
    "another hub model": ("model=hub", "model.path=nobody/nothing"),
    "data sets of the hub": ("model=random", "corpus=wikitext2", "eval=[ppl_paper,qa,mmlu]"),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("sweep", [(), ("-m", "patch=none,rotate")], ids=["run", "sweep"])
def test_a_dry_run_asks_nobody_and_writes_nothing(asked, tmp_path, name, sweep):
    places = [f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache"]
    assert run(*PLANS[name], *places, *sweep, "--dry-run") == 0
    assert asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.embedded
@pytest.mark.slow
def test_a_dry_run_of_the_embedded_model_converts_nothing(asked, tmp_path, capsys):
    places = [f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache"]
    assert run("model=smollm2_135m", *places, "--dry-run") == 0
    assert "isn't on this machine" not in capsys.readouterr().err
    assert run("model=smollm2_135m", *places, "num_pruned_layers=30", "--dry-run") == 1  # of 30
    assert asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.embedded
@pytest.mark.slow
def test_the_header_says_what_the_converted_model_is(tmp_path):
    config = EmbeddedModel().config(tmp_path)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    assert list(tmp_path.iterdir()) == []


def test_a_local_model_with_the_smoke_suite_asks_nobody(asked, model, tmp_path):
    task = lm_eval_task("mine", tmp_path / "rows.json")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(task)
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "The sea is wide."}] * 2))
    overrides = [
        "model=hub", f"model.path={model}", "pruner=tail", "patch=none", "eval=[smoke,tasks]", "eval.smoke.limit=1",
        "eval.tasks.tasks=[mine]", f"eval.tasks.include_path={tmp_path}/tasks", "stages=[dense]", "save_model=true",
        f"output_dir={tmp_path}/D", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    assert run(*overrides) == 0
    assert asked == []


@pytest.mark.parametrize("path", ["here/model", "./here/model"])
def test_the_licence_of_a_folder_without_a_card_is_not_looked_up(asked, model, tmp_path, path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model").symlink_to(model)
    assert HubModel(path=path).known_license == ""
    assert asked == []
