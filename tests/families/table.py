"""The table of verdicts as a page of documentation, and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
FORMATS = {"exact": "plain, custom, adapter", "adapter only": "adapter", "rejected": "", "not tried": ""}

HEAD = """\
# Model families

Written by `make families` with transformers {version}: each decoder-only family that it knows, tried as a tiny random
model of eight layers, without layer 1 and without layers 2 and 5. Don't edit it.

- **exact** ({exact}): the pruned model is the dense one that skips these layers, a checkpoint loads in transformers as
  the model that was measured, generation with a cache is generation without, and the perplexity that is recorded is
  that of the checkpoint.
- **adapter only** ({adapter}): all this but the checkpoint of its own. What a model computes with depends on its
  layers' positions in a way that no configuration of the remaining layers repeats, so such a checkpoint is rejected
  before anything is written; `save_format=adapter` is exact.
- **rejected** ({rejected}): before any work, for the reason given.
- **not tried** ({untried}): transformers can't build a tiny one on this machine, for the reason given.

Other settings of a family may get another verdict; what is rejected, and why, is decided for each model when it is
loaded, after its layers are chosen, and when it is saved.

| family | verdict | saved as | reason |
|---|---|---|---|
"""


def table_of(verdicts: Sequence[Any]) -> str:
    """The page."""
    counts = Counter(verdict.kind for verdict in verdicts)
    head = HEAD.format(
        version=transformers.__version__,
        exact=counts["exact"],
        adapter=counts["adapter only"],
        rejected=counts["rejected"],
        untried=counts["not tried"],
    )
    rows = [
        f"| `{verdict.family}` | {verdict.kind} | {FORMATS[verdict.kind]} | {_cell(verdict.reason)} |"
        for verdict in verdicts
    ]
    return head + "\n".join(rows) + "\n"


def committed_verdicts() -> dict[str, str]:
    """The verdict of each family that the committed page has."""
    rows = re.findall(r"^\| `(\S+)` \| ([a-z ]+) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_").replace("*", "\\*")
