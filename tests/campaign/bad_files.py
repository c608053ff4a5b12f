"""Files that are wrong: texts, folders of models, checkpoints and records, with something else in place of a part."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bad_input import Bad, Good, file, run

TEXTS: Mapping[str, str | bytes] = {
    "empty.txt": "", "blank.txt": " \n\n\t\n" * 50, "short.txt": "a few words",
    "latin.txt": "tëxt ".encode("latin-1") * 99,
    "utf16.txt": ("text " * 500).encode("utf-16"), "binary.txt": bytes(range(256)) * 50, "x.pdf": b"%PDF-1.7\n" * 99,
    "x.docx": b"PK\x03\x04" * 500, "garbage.parquet": b"PAR1" + b"\0" * 999, "empty.parquet": b"",
    "garbage.json": "{" * 500, "number.json": "3", "numbers.json": "[1, 2, 3]", "empty.json": "[]",
    "deep.json": "[" * 99_999,
    "broken.jsonl": '{"text": "a"}\n{"text": ', "numbers.jsonl": "1\n2\n3\n", "empty.jsonl": "",
    "column.jsonl": '{"body": "a text"}\n' * 50, "nulls.jsonl": '{"text": null}\n' * 50,
    "lists.jsonl": '{"text": ["a", "b"]}\n' * 50, "mappings.jsonl": '{"text": {"a": 1}}\n' * 50,
    "blank.jsonl": '{"text": ""}\n' * 50, "garbage.txt.gz": b"\x1f\x8b" + b"x" * 99, "garbage.csv": b"\xff\xfe\0" * 99,
    "column.csv": "body\na\nb\n", "numbers.parquet.txt": b"\x80" * 999,
}  # fmt: skip


def texts() -> Iterator[Bad]:
    """Files that hold no text, or another than they say."""
    for name, content in TEXTS.items():
        yield run("texts", "corpus=text", f"corpus.path={name}", make=file(name, content))
    yield run("texts", "corpus=text", "corpus.path=folder", make=lambda good: Path("folder").mkdir())
    for name in (".hidden.txt", "a.txt~", ".DS_Store", "image.png"):
        yield run(
            "texts", "corpus=text", "corpus.path=folder", make=file(f"folder/{name}", b"\x89PNG text " * 999), name=name
        )
    yield run(
        "texts", "corpus=text", "corpus.path=a.jsonl", "corpus.column=", make=file("a.jsonl", '{"text": "a"}\n' * 99)
    )


def changed_model(name: str, content: str | bytes | None) -> Callable[[Good], object]:
    """A copy of the good model folder with another file in it, or without it."""

    def make(good: Good) -> None:
        shutil.copytree(good.model, "m")
        if content is None:
            Path("m", name).unlink()
        else:
            Path("m", name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def changed_config(**changes: object) -> Callable[[Good], object]:
    def make(good: Good) -> None:
        shutil.copytree(good.model, "m")
        config = json.loads(Path("m/config.json").read_text())
        Path("m/config.json").write_text(json.dumps({**config, **changes}))

    return make


def model_folders() -> Iterator[Bad]:
    """Folders of models that are damaged or of another kind."""
    for name, contents in {
        "config.json": (None, "", "{", "[]", "{}", '{"model_type": "nonsense"}', '{"model_type": "bert"}', b"\xff\xfe"),
        "model.safetensors": (None, b"", b"\x80\x04.", b"\xff" * 8 + b"{", b"\x08\0\0\0\0\0\0\0{}      "),
        "tokenizer.json": (None, "", "{", "{}", "[]", '{"model": {"type": "BPE"}}', b"\xff\xfe\0"),
        "tokenizer_config.json": ("{", "[]", b"\xff\xfe"),
    }.items():  # fmt: skip
        for content in contents:
            make = changed_model(name, content)
            yield run("model folders", "model=hub", "model.path=./m", make=make, name=f"{name}: {content!r}"[:50])
    for changes in (
        {"num_attention_heads": 3}, {"num_key_value_heads": 3}, {"hidden_size": 48}, {"hidden_size": -1},
        {"num_hidden_layers": 9}, {"num_hidden_layers": 3}, {"num_hidden_layers": 0}, {"num_hidden_layers": "x"},
        {"vocab_size": 100}, {"vocab_size": 400}, {"intermediate_size": 99}, {"hidden_act": "nonsense"},
        {"model_type": "qwen3"}, {"model_type": 3}, {"num_hidden_layers": None}, {"is_encoder_decoder": True},
    ):  # fmt: skip
        make = changed_config(**changes)
        yield run("model folders", "model=hub", "model.path=./m", make=make, name=json.dumps(changes))
    pickled = changed_model("model.safetensors", None)
    yield run("model folders", "model=hub", "model.path=./m", name="a pickle",
              make=lambda good: (pickled(good), Path("m/pytorch_model.bin").write_bytes(b"\x80\x04.")))  # fmt: skip


def changed_checkpoint(name: str, content: str | bytes | None) -> Callable[[Good], object]:
    def make(good: Good) -> None:
        shutil.copytree(good.run, "c")
        place = Path("c/model", name)
        if content is None:
            place.unlink()
        else:
            place.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def checkpoints() -> Iterator[Bad]:
    """Saved models that are damaged."""
    for name, contents in {
        "pruning.json": (None, "", "{", "[]", "{}", "null", "[" * 99_999, '{"schema_version": 99}', b"\xff\xfe",
                         '{"schema_version": "x"}', '{"schema_version": 1, "files": {}}'),
        "config.json": (None, "", "{", "{}", "[]"),
        "model.safetensors": (None, b"", b"\xff" * 99),
        "tokenizer.json": (None, "", "{}", "{"),
        "chat_template.jinja": ("{{ nonsense(", "{% for x in %}", "{{ messages[9]['content'] }}", "{{ 1 / 0 }}"),
    }.items():  # fmt: skip
        for content in contents:
            words = ("generate", "c", "hello", *(("--chat",) if "jinja" in name else ()))
            label = f"{name}: {content!r}"[:50]
            yield Bad("checkpoints", label, (*words, "--max-new-tokens", "2"), changed_checkpoint(name, content))


RECORDS: Mapping[str, str | bytes] = {
    "empty": "", "broken": "{", "null": "null", "list": "[]", "no fields": "{}", "NaN": '{"schema_version": NaN}',
    "deep": "[" * 99_999, "binary": bytes(range(256)), "utf-16": "{}".encode("utf-16"),
    "later": '{"schema_version": 99}',
    "a pickle": b"\x80\x04.", "surrogate": '{"run_id": "\\ud800"}', "huge number": '{"seed": ' + "9" * 9999 + "}",
}  # fmt: skip


def records() -> Iterator[Bad]:
    """Records that others wrote."""
    for name, content in RECORDS.items():
        for command in (("report", "R"), ("status", "R", "--once")):
            yield Bad("records", f"{command[0]}, {name}", command, file("R/bad/result.json", content))
        yield run("records", "output_dir=R/bad", name=f"run, {name}", make=file("R/bad/result.json", content))
    for name, content in {"broken": "{", "list": "[]", "wrong": '{"label": 1, "planned": [], "jobs": {}}'}.items():
        yield Bad("records", f"sweep's list, {name}", ("status", "R", "--once"), file("R/.sweeps/s.json", content))
