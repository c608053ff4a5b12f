"""Rows and text of files: every format, encoding and line end that is read, for corpora and tasks alike."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from linearpatch.errors import DataError

PLAIN = (".txt", ".md")
TABLES = (".jsonl", ".ndjson", ".parquet", ".json", ".csv", ".tsv")
COMPRESSED = ".gz"
READ = f"{', '.join((*PLAIN, *TABLES))}, each also with {COMPRESSED} behind it"

# UTF-32 first: its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LONGEST_CELL = 2**31 - 1  # csv's own limit, 131,072 characters, is less than a book has

KINDS: Mapping[type, str] = {
    bytes: "bytes",
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def format_of(file: PurePath) -> str | None:
    """The suffix that says how a file is read, in lower case; None where it isn't.

    >>> format_of(PurePath("a.TXT")), format_of(PurePath("b.jsonl.gz")), format_of(PurePath("a.txt~"))
    ('.txt', '.jsonl', None)
    """
    suffix = PurePath(file.name.lower().removesuffix(COMPRESSED)).suffix
    return suffix if suffix in (*PLAIN, *TABLES) else None


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    return KINDS.get(type(value), f"a value of type {type(value).__name__}")


def read_text(file: Path) -> str:
    """The text of a file whatever its byte order mark and line ends: each line ends in a line feed.

    Raises:
        DataError: it can't be read, or isn't text.
    """
    content = _bytes(file)
    mark, encoding = next((each for each in MARKS if content.startswith(each[0])), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        offset = len(mark) + error.start
        advice = "Save it as UTF-8, for example with iconv -f latin1 -t utf-8."
        if content.startswith(b"\x1f\x8b"):
            advice = f"It is compressed: end its name in {COMPRESSED}."
        raise DataError(
            f"{file} is not {encoding.upper()} text: byte 0x{content[offset]:02x} at offset {offset:,} "
            f"({error.reason}). {advice}"
        ) from error
    if "\0" in text:
        offset = len(mark) + len(text[: text.index("\0")].encode(encoding))
        raise DataError(
            f"{file} holds a NUL character at offset {offset:,}: it isn't text, or it is UTF-16 or UTF-32 without a "
            "byte order mark. Save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(file: Path, column: str | None = None) -> list[Mapping[str, Any]]:
    """The rows of a table, values as they stand there; a row that is null is empty.

    Args:
        file: In one of the formats of `TABLES`.
        column: The only one that is needed, where one is.

    Raises:
        DataError: the file can't be read, or doesn't hold rows.
    """
    form = format_of(file)
    rows: Iterable[Any]
    if form == ".parquet":
        rows = _parquet(file, column)
    elif form in (".csv", ".tsv"):
        rows = _csv(read_text(file), file, "," if form == ".csv" else "\t")
    elif form == ".json":
        rows = _json(read_text(file), file)
    elif form in (".jsonl", ".ndjson"):
        rows = _json_lines(read_text(file), file)
    else:
        raise DataError(f"{file} has an unknown ending. Allowed: {READ}.")
    found: list[Mapping[str, Any]] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict | None):
            raise DataError(
                f'{file}, row {number}: {kind_of(row)} where an object was expected, such as {{"text": …}}.'
            )
        found.append(row or {})
    return found


def read_column(file: Path, column: str) -> list[Any]:
    """One column of a table, None where a row lacks it.

    Raises:
        DataError: the file can't be read, or no row has such a column.
    """
    rows = read_rows(file, column)
    if rows and not any(column in row for row in rows):
        raise DataError(no_column(str(file), column, list(dict.fromkeys(name for row in rows for name in row))))
    return [row.get(column) for row in rows]


def no_column(source: str, column: str, columns: Sequence[str]) -> str:
    """What is said where a column is missing."""
    return (
        f"{source} has no column {column!r}. Its columns: {', '.join(columns) or 'none'}. Choose the one that holds "
        "the text (corpus.column=NAME), or keep the file out of the corpus."
    )


def _bytes(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.name.lower().endswith(COMPRESSED) else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} can't be read: {error}.") from error


def _parquet(file: Path, column: str | None) -> list[Any]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(io.BytesIO(_bytes(file)) if file.name.lower().endswith(COMPRESSED) else file) as table:
            names = table.schema_arrow.names
            if column is not None and column not in names:
                raise DataError(no_column(str(file), column, names))
            rows: list[Any] = table.read(columns=None if column is None else [column]).to_pylist()
            return rows
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} can't be read as parquet: {error}.") from error


def _csv(text: str, file: Path, delimiter: str) -> list[Any]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Any] = []
    try:
        header = next(reader, [])
        twice = {name for name in header if header.count(name) > 1}
        if twice:
            raise DataError(f"{file} names a column twice: {', '.join(map(repr, sorted(twice)))}. Rename one of them.")
        for cells in reader:
            if len(cells) > len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells under {len(header)} columns "
                    f"({', '.join(header)}). Quote text that holds {delimiter!r} or a line end."
                )
            if cells:  # an empty cell is how a table of this kind writes null
                rows.append({name: cell or None for name, cell in zip(header, cells, strict=False)})
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: can't be read as {format_of(file)}: {error}.") from error
    return rows


def _json_lines(text: str, file: Path) -> list[Any]:
    # Not splitlines: text may hold other characters that end a line.
    lines = enumerate(text.split("\n"), start=1)
    return [_parsed(line, file, f"row {number}: ") for number, line in lines if line.strip()]


def _json(text: str, file: Path) -> list[Any]:
    if not text.strip():
        return []
    try:
        content = _parsed(text, file, "")
    except DataError as error:
        if "Extra data" in str(error):  # lines of objects are called .json, too
            return _json_lines(text, file)
        raise
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and all(isinstance(values, dict) for values in content.values()):
        content = {name: list(values.values()) for name, values in content.items()}
    if isinstance(content, dict) and all(isinstance(values, list) for values in content.values()):
        if len({len(values) for values in content.values()}) > 1:
            raise DataError(f"{file} has columns of different lengths. Save it as a list of objects, one a row.")
        return [dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)]
    raise DataError(f"{file} holds {kind_of(content)}, not rows: a list of objects was expected.")


def _parsed(text: str, file: Path, place: str) -> Any:
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of more digits than Python converts; nothing reads it
            return json.loads(text, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} can't be read as {(format_of(file) or '')[1:]}: {place}{error}.") from error
