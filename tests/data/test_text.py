"""Text is text: every form of file gives the same documents, and what isn't text is rejected in a sentence."""

import codecs
import gzip
import json
from datetime import date
from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table

from linearpatch.data.blocks import BlockSpec
from linearpatch.data.documents import Chat, Column, rendered
from linearpatch.data.files import TextCorpus
from linearpatch.data.hub import HubCorpus
from linearpatch.data.mixture import MixtureCorpus
from linearpatch.data.pydoc import PydocCorpus
from linearpatch.data.reader import Text
from linearpatch.data.rows import PLAIN, TABLES, format_of, read_rows
from linearpatch.errors import DataError
from linearpatch.evaluation.harness.data import _rows
from linearpatch.models.random import byte_tokenizer

DOCUMENTS = ["Grüße, Welt", "two words,\nand a comma", 'a "quoted" one', "数", "\u2028 no line end"]
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def lines(*rows: object) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def table(file: Path, **columns: list) -> bytes:
    write_table(pyarrow.table(columns), file)
    return file.read_bytes()


def content_of(suffix: str, folder: Path, encoding: str = "utf-8") -> bytes:
    """The documents as a file of a format."""
    rows = [{"id": number, "text": text} for number, text in enumerate(DOCUMENTS)]
    if suffix in PLAIN:
        text = "\n\n".join(DOCUMENTS)
    elif suffix in (".csv", ".tsv"):
        cells = ['"{}"'.format(text.replace('"', '""')) for text in DOCUMENTS]
        text = "".join(f"{number}{',' if suffix == '.csv' else chr(9)}{cell}\n" for number, cell in enumerate(cells))
        text = f"id{',' if suffix == '.csv' else chr(9)}text\n{text}"
    elif suffix == ".json":
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    elif suffix == ".parquet":
        return table(folder / "made", id=list(range(len(DOCUMENTS))), text=DOCUMENTS)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(encoding)


def read(folder: Path, name: str, content: bytes, column: str = "text") -> list:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return TextCorpus(path=str(file), column=column).documents("all")


# --- every form gives the same documents ---------------------------------------------------------------------------

FORMS = [*PLAIN, *TABLES]
ENCODED = [suffix for suffix in FORMS if suffix != ".parquet"]


@pytest.mark.parametrize("name", ["mine{}", "MINE{}.GZ", "a b (2){}.gz"])
@pytest.mark.parametrize("suffix", FORMS)
def test_every_format_compressed_or_not_in_any_letter_case(tmp_path, suffix, name):
    content = content_of(suffix, tmp_path)
    name = name.format(suffix.upper() if name.isupper() else suffix)
    assert read(tmp_path, name, gzip.compress(content) if "gz" in name.lower() else content) == DOCUMENTS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("suffix", ENCODED)
def test_byte_order_marks_name_the_encoding_and_are_no_text(tmp_path, suffix, encoding):
    mark = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}.get(encoding, b"")
    assert read(tmp_path, f"mine{suffix}", mark + content_of(suffix, tmp_path, encoding)) == DOCUMENTS


@pytest.mark.parametrize("end", [b"\r", b"\r\n"])
@pytest.mark.parametrize("suffix", ENCODED)
def test_line_ends_of_other_systems(tmp_path, suffix, end):
    assert read(tmp_path, f"mine{suffix}", content_of(suffix, tmp_path).replace(b"\n", end)) == DOCUMENTS


OTHER = [
    "1" + "0" * 30,
    "-" + "9" * 5000,
    "1e308",
    "1e999",
    "NaN",
    "true",
    "null",
    '[1, {"a": [36893488147419103232]}]',
]


@pytest.mark.parametrize("value", OTHER, ids=[value[:12] for value in OTHER])
def test_other_columns_may_hold_anything(tmp_path, value):
    row = f'{{"id": {value}, "text": "a b"}}'
    assert read(tmp_path, "mine.jsonl", f'{row}\n{{"id": 1, "text": "c"}}'.encode()) == ["a b", "c"]
    assert read(tmp_path, "mine.json", f"[{row}]".encode()) == ["a b"]


@pytest.mark.parametrize(
    "content",
    [
        b'[{"text": "a"}, {"text": "b"}]',
        b'{"text": "a"}\n{"text": "b"}\n',  # as C4 is published
        b'{"text": {"0": "a", "1": "b"}}',  # pandas.to_json
        b'{"text": ["a", "b"], "id": [1, 2]}',
    ],
)
def test_json_files_hold_rows_in_several_ways(tmp_path, content):
    assert read(tmp_path, "mine.json", content) == ["a", "b"]


def test_long_cells_and_parquet_in_folders_that_look_like_columns(tmp_path):
    assert read(tmp_path, "long.csv", b"text\n" + b"x" * 200_000) == ["x" * 200_000]
    content = content_of(".parquet", tmp_path)
    assert read(tmp_path, "text=en/a.parquet", content) == DOCUMENTS


def test_categories_and_large_strings_are_text(tmp_path):
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        content = table(tmp_path / "made", text=pyarrow.array(["a", "b", None]).cast(kind))
        assert read(tmp_path, "mine.parquet", content) == ["a", "b"]


# --- rows without text ---------------------------------------------------------------------------------------------

MISSING = [
    ("null.jsonl", lambda _: lines({"text": "a b"}, {"text": None}, {"id": 3})),
    ("nan.jsonl", lambda _: b'{"text": "a b"}\n{"text": NaN}\n\n{}\n'),
    ("rows.jsonl", lambda _: b'{"text": "a b"}\nnull\nnull\n'),
    ("null.json", lambda _: lines([{"text": "a b"}, {"text": None}, {}])),
    ("null.csv", lambda _: b'id,text\n1,a b\n2,\n3,""\n'),
    ("short.csv", lambda _: b"id,text\n1,a b\n2\n3\n"),
    ("null.tsv", lambda _: b"id\ttext\n1\ta b\n2\t\n3\t\n"),
    ("null.parquet", lambda file: table(file, text=["a b", None, None])),
    ("lists.parquet", lambda file: table(file, text=pyarrow.array([[CHAT[0]], None, []]))),
]


@pytest.mark.parametrize(("name", "content"), MISSING)
def test_rows_without_text_are_left_out_and_counted_once(tmp_path, caplog, name, content):
    (tmp_path / name).write_bytes(content(tmp_path / "made"))
    corpus = TextCorpus(path=str(tmp_path / name))
    for purpose in ("calibration", "distillation", "evaluation"):
        corpus.documents(corpus.split(purpose))
    assert len(corpus.documents("all")) == 1
    assert caplog.text.count("2 of 3 rows without text (null, NaN or missing) left out") == 1


def test_empty_rows_are_documents_as_in_wikitext(tmp_path):
    assert read(tmp_path, "mine.jsonl", lines({"text": ""}, {"text": " = Title = "})) == ["", " = Title = "]


@pytest.mark.parametrize("word", ["nan", "null", "None", "NA"])
def test_words_that_look_like_nothing_are_words(tmp_path, word):
    assert read(tmp_path, "mine.jsonl", lines({"text": word})) == [word]
    assert read(tmp_path, "mine.csv", f"text\n{word}\n".encode()) == [word]


@pytest.mark.parametrize(("name", "content"), MISSING[:1] + MISSING[5:6])
def test_local_copies_of_data_sets_are_read_alike(tmp_path, caplog, name, content):
    file = tmp_path / "set" / f"test{Path(name).suffix}"
    file.parent.mkdir()
    file.write_bytes(content(tmp_path / "made"))
    assert HubCorpus(name="h", path="owner/set").documents("test", tmp_path) == ["a b"]
    assert "corpus h: 2 of 3 rows without text" in caplog.text


def hub_of(monkeypatch, streams: bool, **columns: list) -> HubCorpus:
    import datasets

    rows = datasets.Dataset.from_dict(columns)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, streaming, **__: rows.to_iterable_dataset() if streaming else rows
    )
    return HubCorpus(name="h", path="owner/set", max_documents=10 if streams else None)


@pytest.mark.parametrize("streams", [False, True])
def test_the_hub_is_read_alike(monkeypatch, caplog, streams):
    assert hub_of(monkeypatch, streams, text=["a b", None], id=[1, 2]).documents("test") == ["a b"]
    assert "corpus h: 1 of 2 rows without text" in caplog.text
    with pytest.raises(DataError, match=r"no column 'text'. Its columns: body"):
        hub_of(monkeypatch, streams, body=["a"]).documents("test")
    with pytest.raises(DataError, match="row 1, column 'text': a number where text was expected"):
        hub_of(monkeypatch, streams, text=[1]).documents("test")
    (chat,) = hub_of(monkeypatch, streams, text=[CHAT]).documents("test")
    assert list(chat.messages) == CHAT


def test_the_questions_of_tasks_are_read_alike(tmp_path, caplog):
    rows = [{"q": "Grüße", "id": 2**70}, {"q": "b", "id": 1}]
    for name, content in {
        "bom.jsonl": codecs.BOM_UTF8 + lines(*rows, None),
        "cr.jsonl": lines(*rows, None).replace(b"\n", b"\r"),
        "z.JSONL.gz": gzip.compress(lines(*rows, None)),
        "list.json": lines([*rows, None]),
    }.items():
        (tmp_path / name).write_bytes(content)
        caplog.clear()
        assert _rows(tmp_path / name) == [{"q": "Grüße", "id": str(2**70)}, {"q": "b", "id": "1"}]
        assert "1 of 3 rows are null" in caplog.text
    (tmp_path / "words.json").write_bytes(lines(["a"]))
    with pytest.raises(DataError, match="row 1: text where an object was expected"):
        _rows(tmp_path / "words.json")


# --- what isn't text is rejected -----------------------------------------------------------------------------------

REJECTED = [
    ("bytes.parquet", lambda file: table(file, text=[b"a", b"b"]), r"row 1, column 'text': bytes.*b'a'.*str\.decode"),
    ("lists.parquet", lambda file: table(file, text=[["a", "b"]]), "row 1, column 'text': a list"),
    ("numbers.parquet", lambda file: table(file, text=[1.5, 2.5]), "row 1, column 'text': a number"),
    ("dates.parquet", lambda file: table(file, text=[date(2026, 1, 1)]), "type date"),
    ("objects.parquet", lambda file: table(file, text=[{"a": 1}]), "row 1, column 'text': an object"),
    ("number.jsonl", lambda _: lines({"text": "a"}, {"text": 5}), "row 2, column 'text': a number.*: 5"),
    ("truth.jsonl", lambda _: lines({"text": True}), "a truth value"),
    ("object.jsonl", lambda _: lines({"text": {"a": "b"}}), "an object"),
    ("strings.jsonl", lambda _: lines({"text": ["a"]}), "a list"),
    ("sharegpt.jsonl", lambda _: lines({"text": [{"from": "human", "value": "a"}]}), "Message 1 .*: it has no role"),
    ("content.jsonl", lambda _: lines({"text": [CHAT[0], {"role": "x", "content": None}]}), "its content is null"),
    ("parts.jsonl", lambda _: lines({"text": [{"role": "user", "content": [{"type": "text"}]}]}), "content is a list"),
    ("half.jsonl", lambda _: rb'{"text": "a\ud83d"}', r"half of a surrogate pair \(U\+D83D\)"),
    ("chat.jsonl", lambda _: rb'{"text": [{"role": "user", "content": "\udc00"}]}', "surrogate"),
    ("other.jsonl", lambda _: lines({"body": "x"}), r"no column 'text'. Its columns: body.*corpus\.column=NAME"),
    ("none.jsonl", lambda _: b"{}\n{}", "no column 'text'. Its columns: none"),
    ("other.parquet", lambda file: table(file, body=["x"]), "no column 'text'. Its columns: body"),
    ("other.csv", lambda _: b"id;text\n1;a", "no column 'text'. Its columns: id;text"),
    ("strings.json", lambda _: b'["a", "b"]', "row 1: text where an object"),
    ("string.json", lambda _: b'"a"', "holds text, not rows"),
    ("object.json", lambda _: b'{"text": "a"}', "holds an object, not rows"),
    ("columns.json", lambda _: b'{"text": ["a"], "id": []}', "different lengths"),
    ("broken.json", lambda _: b'[{"text": "a"', "can't be read as json"),
    ("broken.jsonl", lambda _: b'{"text": "a"}\n{"text": ', "can't be read as jsonl: row 2"),
    ("words.jsonl", lambda _: b"just words", "can't be read as jsonl: row 1"),
    ("deep.jsonl", lambda _: b'{"text": ' + b"[" * 100_000, "can't be read as jsonl: row 1"),
    ("broken.parquet", lambda _: b"PAR1 nothing", "can't be read as parquet"),
    ("empty.parquet", lambda _: b"", "can't be read as parquet"),
    ("ragged.csv", lambda _: b"id,text\n1,a, b\n", "line 2: 3 cells under 2 columns"),
    ("quotes.csv", lambda _: b'id,text\n1,"a\n', "can't be read as .csv"),
    ("twice.csv", lambda _: b"text,text\na,b\n", "names a column twice: 'text'"),
    ("latin.txt", lambda _: b"Gr\xfc\xdfe", r"not UTF-8 text: byte 0xfc at offset 2 .*iconv"),
    ("latin.jsonl", lambda _: b'{"text": "Gr\xfc"}', "byte 0xfc at offset 12"),
    ("latin.csv", lambda _: b"text\nGr\xfc\n", "byte 0xfc at offset 7"),
    ("marked.txt", lambda _: codecs.BOM_UTF8 + b"ab\xff", "byte 0xff at offset 5"),
    ("cut.txt", lambda _: codecs.BOM_UTF16_LE + b"a\0b", "not UTF-16-LE text.*UTF-8"),
    ("unmarked.txt", lambda _: "ab".encode("utf-16-le"), "NUL character at offset 1"),
    ("binary.md", lambda _: b"abc\0def", "NUL character at offset 3"),
    ("packed.txt", lambda _: gzip.compress(b"a"), "compressed: end its name in .gz"),
    ("unpacked.txt.gz", lambda _: b"plain", "can't be read: Not a gzipped file"),
    ("cut.txt.gz", lambda _: gzip.compress(b"a" * 999)[:-9], "can't be read"),
    ("damaged.csv.gz", lambda _: gzip.compress(bytes(range(256)))[:20] + b"\xff" * 300, "can't be read"),
    ("notes", lambda _: b"a", r"unknown ending. Allowed: \.txt, \.md"),
    ("notes.txt~", lambda _: b"a", "unknown ending"),
    ("notes.gz", lambda _: gzip.compress(b"a"), "unknown ending"),
    ("notes.pdf", lambda _: b"%PDF", "unknown ending"),
    ("book.docx", lambda _: b"PK", "unknown ending"),
    *((f"empty{suffix}", lambda _: b"", "holds no text") for suffix in ENCODED),
    ("mark.txt", lambda _: codecs.BOM_UTF8, "holds no text"),
    ("blank.jsonl", lambda _: lines({"text": " "}, {"text": None}), "holds no text"),
    ("blank_chat.jsonl", lambda _: lines({"text": [{"role": "user", "content": ""}]}), "holds no text"),
    ("header.csv", lambda _: b"text\n", "holds no text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), REJECTED, ids=[case[0] for case in REJECTED])
def test_what_is_no_text_is_rejected_with_its_place(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content(tmp_path / "made"))
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        TextCorpus(path=str(file), calibration="all", column="text").read("calibration")
    assert str(file) in str(caught.value)


VALUES = [
    "a",
    "",
    None,
    float("nan"),
    1,
    1.5,
    False,
    b"a",
    [],
    ["a"],
    {},
    {"a": 1},
    [{}],
    [None],
    [CHAT],
    (1,),
    {1},
    CHAT,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_text_or_a_chat_or_missing_or_rejected(value):
    """Beside any other value: the first that isn't text is named, and none becomes the spelling of a value."""
    for other in VALUES:
        pair = [value, other]
        missing = [each is None or each == [] or each != each for each in pair]
        text = [each in ("a", "", CHAT) for each in pair]
        readable = [a or b for a, b in zip(missing, text, strict=True)]
        if all(readable):
            column = Column.of(pair, "file", "text")
            assert column.missing == sum(missing)
            kept = [each for each, is_text in zip(pair, text, strict=True) if is_text]
            assert [list(each.messages) if isinstance(each, Chat) else each for each in column.documents] == kept
        else:
            with pytest.raises(DataError, match=f"file, row {1 + readable.index(False)}, column 'text': "):
                Column.of(pair, "file", "text")


# --- chats -----------------------------------------------------------------------------------------------------------


def test_chats_are_rendered_by_the_tokenizers_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    documents = read(tmp_path, "chat.jsonl", lines({"messages": CHAT}, {"messages": CHAT[:1]}), "messages")
    text = Text(documents, " ", "text", "text/all")
    bos = tokenizer.bos_token
    assert text.texts(tokenizer) == [f"{bos}<user>Hello<assistant>Hi", f"{bos}<user>Hello"]
    blocks = text.cut(BlockSpec(block_length=4), tokenizer)
    assert blocks.ids[0, 0] == tokenizer.bos_token_id
    assert (blocks.ids == tokenizer.bos_token_id).sum() == 2  # none before that of the template
    plain = Text(text.texts(tokenizer), " ", "text", "text/all").cut(BlockSpec(block_length=4), byte_tokenizer())
    assert blocks.hash == plain.hash


def test_fields_that_a_table_fills_with_null_are_none_of_the_template(tmp_path):
    rows = [[{"role": "user", "content": "a", "name": None}, {"role": "user", "content": "b", "name": "Eve"}]]
    (chat,) = read(tmp_path, "chat.parquet", table(tmp_path / "made", messages=rows), "messages")
    assert [dict(message) for message in chat.messages] == [
        {"role": "user", "content": "a"}, {"role": "user", "content": "b", "name": "Eve"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"chat\.jsonl, row 1, column 'messages' holds a chat, and this model's tokenizer has no chat template"),
        ("{{ raise_exception('must alternate') }}", "rejects this chat with the roles user, assistant: must alternate"),
        ("{{ messages[0].content.nothing() }}", "rejects this chat"),
        ("{% broken", "rejects this chat"),
    ],
)
def test_chats_without_a_template_that_takes_them_are_rejected(tmp_path, template, message):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    documents = read(tmp_path, "chat.jsonl", lines({"messages": CHAT}), "messages")
    with pytest.raises(DataError, match=message):
        rendered(documents, tokenizer, "text/all")


def test_chats_are_mixed_with_texts_by_their_length(tmp_path):
    (tmp_path / "chat.jsonl").write_bytes(lines(*[{"messages": CHAT}] * 300))
    chats = TextCorpus(path=str(tmp_path / "chat.jsonl"), column="messages")
    mixed = MixtureCorpus(parts={"chats": chats, "docs": PydocCorpus()}).read("calibration")
    assert {type(document) for document in mixed} == {str, Chat}


# --- the cases of the issue ------------------------------------------------------------------------------------------


def test_case_text_nulls(tmp_path):
    null = lines({"text": "a b"}, {"text": None}, {"id": 3})
    assert read(tmp_path, "null.jsonl", null) == ["a b"]
    with pytest.raises(DataError, match="bytes"):
        read(tmp_path, "bytes.parquet", table(tmp_path / "made", text=[b"a", b"b"]))
    (chat,) = read(tmp_path, "chat.jsonl", lines({"messages": CHAT[:1]}), "messages")
    assert chat.messages == (CHAT[0],)


def test_formats_are_told_by_suffix_alone():
    assert format_of(Path("a.b/c.JSONL.GZ")) == ".jsonl"
    assert [format_of(Path(name)) for name in ("gz", ".gz", ".txt", "txt", "a.gz", "a.tar.gz")] == [None] * 6
    with pytest.raises(DataError, match="unknown ending"):
        read_rows(Path("a.txt"))
