"""Whether the hub can be reached, asked once instead of waited for with every data set."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from unittest import mock

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0


@contextmanager
def without_waiting() -> Iterator[None]:
    """Load data sets as if offline where the hub doesn't answer.

    Its client retries each request for half a minute; with this only local copies are looked for then.
    """
    from huggingface_hub import constants

    with nullcontext() if constants.HF_HUB_OFFLINE or hub_answers() else offline():
        yield


@contextmanager
def offline() -> Iterator[None]:
    """Use what is on this machine: nothing is asked of the hub, and nothing is downloaded."""
    import datasets
    from huggingface_hub import constants

    with (
        mock.patch.object(constants, "HF_HUB_OFFLINE", True),
        mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True),
    ):
        yield


@cache
def hub_answers() -> bool:
    """Whether the hub's server answers at all, within a few seconds."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=TIMEOUT_S)
    except (httpx.HTTPError, OSError) as error:
        log.info("%s doesn't respond (%s); using local data only", constants.ENDPOINT, error)
        return False
    return True
