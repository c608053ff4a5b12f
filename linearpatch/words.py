"""Numbers as sentences have them, and letters that number notes."""

from __future__ import annotations

from string import ascii_lowercase


def counted(count: float, noun: str) -> str:
    """A number with its noun, one or many.

    >>> counted(1, "run"), counted(2, "entry"), counted(0.5, "GPU"), counted(1_234_567, "token")
    ('1 run', '2 entries', '0.5 GPUs', '1,234,567 tokens')
    """
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,.9g} {noun if count == 1 else many}"


def letter(index: int) -> str:
    """Letters in order.

    >>> letter(0), letter(25), letter(26)
    ('a', 'z', 'aa')
    """
    more, last = divmod(index, len(ascii_lowercase))
    return (letter(more - 1) if more else "") + ascii_lowercase[last]
