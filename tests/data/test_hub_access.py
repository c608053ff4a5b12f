import datasets
import httpx
import pytest
from huggingface_hub import constants

from linearpatch.data import hub_access


@pytest.fixture(autouse=True)
def _asked_again(monkeypatch):
    hub_access.hub_answers.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    yield
    hub_access.hub_answers.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once_and_then_left_alone(monkeypatch):
    asked = []

    def fail(url, timeout):
        asked.append(url)
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "head", fail)
    for _ in range(3):
        with hub_access.without_waiting():
            assert constants.HF_HUB_OFFLINE
            assert datasets.config.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
    assert asked == [constants.ENDPOINT]


def test_a_hub_that_answers_is_used(monkeypatch):
    monkeypatch.setattr(httpx, "head", lambda url, timeout: httpx.Response(405))
    with hub_access.without_waiting():
        assert not constants.HF_HUB_OFFLINE


def test_offline_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(httpx, "head", lambda *_: pytest.fail("the hub was asked"))
    with hub_access.without_waiting():
        assert constants.HF_HUB_OFFLINE
