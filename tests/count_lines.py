"""Lines of code by folder: what the project exists for must stay larger than what surrounds it.

    python tests/count_lines.py

Counted are lines that hold code: no blank lines, comments or docstrings.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1] / "linearpatch"
SCIENCE = ("models", "calibration", "pruners", "patches", "distillation", "linalg")
PERIPHERY = ("cli", "sweep", "report", "results", "tracking", "storage", "runtime")
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(text: str) -> int:
    """Lines of a Python file that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def count(folders: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Lines of code, and all lines, of each folder."""
    found = {}
    for folder in folders:
        texts = [file.read_text(encoding="utf-8") for file in sorted((ROOT / folder).rglob("*.py"))]
        found[folder] = (sum(map(lines_of_code, texts)), sum(len(text.splitlines()) for text in texts))
    return found


def main() -> int:
    """Print both sums; return 1 if the periphery is the larger."""
    sums = []
    for title, folders in (("science", SCIENCE), ("periphery", PERIPHERY)):
        counts = count(folders)
        code, every = (sum(pair[at] for pair in counts.values()) for at in (0, 1))
        parts = ", ".join(f"{folder} {pair[0]:,}" for folder, pair in counts.items())
        sys.stdout.write(f"{title}: {code:,} lines of code ({every:,} lines): {parts}\n")
        sums.append(code)
    return int(sums[1] > sums[0])


if __name__ == "__main__":
    sys.exit(main())
