"""Tables as LaTeX, for `booktabs`."""

from __future__ import annotations

from linearpatch.report.tables import Cell, Table
from linearpatch.text import printable

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "–": "--", "…": r"\dots{}", "Δ": r"$\Delta$",
}  # fmt: skip


def escape(text: str) -> str:
    r"""Text that LaTeX shows as it is.

    >>> print(escape("50% of a_b"))
    50\% of a\_b
    """
    return "".join(SPECIAL.get(character, character) for character in " ".join(printable(text).split()))


def latex_table(table: Table) -> str:
    """A `table` with caption, label and notes; a rule between groups, the best numbers in bold."""
    alignment = "".join("r" if right else "l" for right in table.are_right)
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "  \\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"  \\caption{{{escape(table.title)}}}",
        f"  \\label{{tab:{table.name.replace('_', '-')}}}",
        f"  \\begin{{tabular}}{{{alignment}}}",
        "    \\toprule",
        f"    {' & '.join(escape(head) for head in (*table.heads, *table.columns))} \\\\",
    ]
    for group in table.groups:
        lines.append("    \\midrule")
        for line in group:
            cells = [*(escape(label) for label in line.labels), *(_cell(cell) for cell in line.cells)]
            lines.append(f"    {' & '.join(cells)} \\\\")
    lines += ["    \\bottomrule", "  \\end{tabular}"]
    if table.notes:
        lines.append("  \\par\\smallskip\\raggedright\\footnotesize")
        lines.append(" \\\\\n".join(f"  {escape(note)}." for note in table.notes))
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = f"\\textbf{{{text}}}" if cell.best else text
    return f"{text}$^{{{cell.mark}}}$" if cell.mark else text
