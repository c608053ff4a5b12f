"""A tokenizer of Hugging Face's `tokenizers` from a sentencepiece model, with the same ids for every text.

The merges come from the pieces' scores, as in transformers' own conversions. What sentencepiece does before and around
them (its table of characters, the dummy prefix, symbols that are never split) is taken from the model file, and the
result is compared with sentencepiece itself before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges

from linearpatch.errors import ModelError

MODEL = "tokenizer.model"
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces
BPE_MODEL = 2  # types of models
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")

# Where conversions differ: spaces at both ends and in runs, other white space, digits, scripts, emoji, bytes.
PROBES = (
    "The sea is deep, and 3 fish swim in it.", " a", "a ", "  two  ", " ", "\n", "<0x0A>", "\x07\x1b[0m", "▁ ▁▁",
    "     five and\n\n\nthree\t\ttabs  \n", "x = {'a': [1, 2.50], \"b\": None}\r\n", "    return f(x)  # 4 spaces",
    "1234567890 3.14159 2026-11-27", "今天天气很好。我们在2023年发布了模型,效果不错!", " 中文 和 English 混排 ",
    "日本語とひらがな、カタカナ", "한국어 문장", "Привет, мир", "مرحبا بالعالم", "👍🏽 🇨🇳 emoji", "é é ﬁ Ａ　①",
    "\u200b\ufeff\u00a0nbsp", "𝔘𝔫𝔦 𐍈",
)  # fmt: skip


def converted_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder with a sentencepiece model of type BPE, and the settings of its tokenizer_config.json.

    Args:
        folder: Holds `tokenizer.model`, and may hold `tokenizer_config.json` and `special_tokens_map.json`.

    Returns:
        A tokenizer whose ids are those of sentencepiece for text without special tokens. Special tokens in a text are
        recognised, and BOS and EOS added where the settings say so.

    Raises:
        ModelError: sentencepiece is missing, the file can't be read, or no such tokenizer can be built.
    """
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise ModelError(
            "The model's tokenizer is one of sentencepiece, which isn't installed. Run: "
            "pip install 'linearpatch[sentencepiece]'"
        ) from error
    file = folder / MODEL
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
        reference = SentencePieceProcessor(model_file=str(file))
    except Exception as error:  # a DecodeError of protobuf, whatever its version
        raise ModelError(f"{file} can't be read as a sentencepiece model: {error}. Download it again.") from error
    backend = _tokenizer(proto, file)
    symbols = [f"a{piece.piece} b" for piece in proto.pieces if piece.type == USER_DEFINED]
    pieces = [piece.piece.replace(SPACE, " ") for piece in proto.pieces]
    check_ids(backend, reference, [*PROBES, *symbols, *pieces], file)
    settings = _settings(folder)
    special = {name: token for name in SPECIAL if (token := _content(settings.get(name)))}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=bool(settings.get("add_bos_token", True)),
        add_eos_token=bool(settings.get("add_eos_token", False)),
        clean_up_tokenization_spaces=False,
        **special,
        **{name: settings[name] for name in ("model_max_length", "chat_template", "padding_side") if name in settings},
    )


def check_ids(tokenizer: Tokenizer, reference: Any, texts: Sequence[str], file: Path) -> None:
    """Compare a converted tokenizer with sentencepiece.

    Args:
        tokenizer: The converted one.
        reference: The `SentencePieceProcessor` of the same file.
        texts: What both encode; those with special tokens are left out, which sentencepiece doesn't recognise.
        file: For the error.

    Raises:
        ModelError: the ids of a text differ.
    """
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    plain = [text for text in texts if not any(token in text for token in special)]
    encodings = tokenizer.encode_batch(plain, add_special_tokens=False)
    for text, encoding, expected in zip(plain, encodings, reference.encode(plain), strict=True):
        if encoding.ids != expected:
            raise ModelError(
                f"{file} can't be converted exactly: sentencepiece makes {expected[:8]} of {text[:40]!r}, the "
                f"converted tokenizer {encoding.ids[:8]}. This version of linearpatch can't use it."
            )


def _tokenizer(proto: Any, file: Path) -> Tokenizer:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    unknown = {
        f"model type {trainer.model_type}, not BPE": trainer.model_type != BPE_MODEL,
        "a dummy prefix at the end of words": trainer.treat_whitespace_as_suffix,
        "spaces that aren't escaped": not normalizer.escape_whitespaces,
    }
    if problems := [what for what, is_so in unknown.items() if is_so]:
        raise ModelError(f"{file} has {' and '.join(problems)}: this version of linearpatch can't convert that.")
    pieces = list(enumerate(proto.pieces))
    unmergeable = {piece.piece for _, piece in pieces if piece.type in (UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    vocabulary = {piece.piece: index for index, piece in pieces}
    scores = [(piece.piece, piece.score) for _, piece in pieces]
    model = BPE(
        vocabulary,
        generate_merges(vocabulary, scores, skip_tokens=unmergeable),
        unk_token=trainer.unk_piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
    )
    tokenizer = Tokenizer(model)
    steps: list[Any] = []
    if normalizer.precompiled_charsmap:
        steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
    if normalizer.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    if normalizer.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(content=" ", left=1)] if normalizer.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(
        [AddedToken(p.piece, normalized=False, special=True) for _, p in pieces if p.type in (UNKNOWN, CONTROL)]
    )
    # Looked for after normalisation, since such a symbol may hold spaces.
    tokenizer.add_tokens([AddedToken(p.piece, normalized=True) for _, p in pieces if p.type == USER_DEFINED])
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    """Settings of the original tokenizer; those of its configuration win."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} can't be read: {error}. Download it again.") from error
        settings |= content if isinstance(content, Mapping) else {}
    return settings


def _content(token: Any) -> str | None:
    """The text of a special token, which files give as such or with its settings."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
