"""The quickstart notebook as a page: its text and its code, in order."""

from __future__ import annotations

import json
from pathlib import Path


def notebook_page(notebook: Path) -> str:
    """A notebook as Markdown; outputs are left out, since they depend on the machine."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts) + "\n"
