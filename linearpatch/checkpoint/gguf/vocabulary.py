"""A tokenizer in the terms of GGUF: kind, way of splitting text, tokens, merges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType

from linearpatch.errors import ModelError

OTHER_FORMATS = "Use save_format=plain, custom or adapter."
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of expressions that split text.
SPLITS = {CONTRACTIONS + WORDS % r"\p{N}{1,3}": "llama-bpe", CONTRACTIONS + WORDS % r"\p{N}": "qwen2"}
WHOLE_WORDS = "llama-bpe"  # a word that is a token needs no merges there
NO_MERGE = "<none> <none>"  # llama.cpp rejects a list without a merge; this one never applies
SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp makes tokens with.

    Attributes:
        split: llama.cpp's name of how text is split before merges.
        tokens: By id.
        types: Of each token.
        merges: Pairs with a space between, the first to merge first.
        special: Ids of special tokens by their purpose.
        adds: Whether a beginning (`bos`) and an end (`eos`) are added to a text.
        chat_template: In Jinja; None: there is none.
    """

    split: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: Mapping[str, int]
    adds: Mapping[str, bool]
    chat_template: str | None

    def add_to(self, writer: GGUFWriter) -> None:
        """Add it to the metadata of a file."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges or [NO_MERGE])
        for purpose, index in self.special.items():
            getattr(writer, f"add_{purpose}_token_id")(index)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """Describe a tokenizer.

    Args:
        tokenizer: A byte-level BPE of transformers' fast tokenizers.
        size: Rows of the embeddings; rows without a token get a name that no text contains.

    Raises:
        ModelError: it is of another kind, or splits text in a way that llama.cpp has no name for.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _unknown(tokenizer, "it isn't one of the tokenizers library, so its merges aren't known")
    content = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _unknown(tokenizer, f"its model is {model['type']}, not byte-level BPE")
    normalizer = (content["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _unknown(tokenizer, f"it normalises text ({normalizer})")
    split = _split_of(content["pre_tokenizer"])
    if split is None or bool(model.get("ignore_merges")) != (split == WHOLE_WORDS):
        raise _unknown(tokenizer, f"llama.cpp has no name for how it splits text: {content['pre_tokenizer']}")
    ids = {index: token for token, index in model["vocab"].items()}
    types = dict.fromkeys(ids, TokenType.NORMAL)
    for added in content["added_tokens"]:
        ids[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(ids) >= size:
        raise ModelError(
            f"The tokenizer has tokens up to {max(ids)} and the model embeddings of {size} only. Use the tokenizer "
            "that belongs to the model."
        )
    encoded = tokenizer("a").input_ids
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL}
    template = tokenizer.chat_template
    return Vocabulary(
        split=split,
        tokens=[ids.get(index, f"[PAD{index}]") for index in range(size)],
        types=[int(types.get(index, TokenType.UNUSED)) for index in range(size)],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        special={name: index for name, index in special.items() if index is not None},
        adds={
            "bos": special["bos"] is not None and encoded[0] == special["bos"],
            "eos": special["eos"] is not None and encoded[-1] == special["eos"],
        },
        chat_template=template.get("default") if isinstance(template, dict) else template,
    )


def _split_of(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """llama.cpp's name of how text is split; None: it has none."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(before) > 1:
        return None
    if not before:
        return "gpt-2" if last["use_regex"] else None
    (first,) = before
    if first["type"] == "Digits" and first["individual_digits"] and last["use_regex"]:
        return "smollm"
    if first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"] and not last["use_regex"]:
        return SPLITS.get(first["pattern"].get("Regex", ""))
    return None


def _unknown(tokenizer: Any, why: str) -> ModelError:
    return ModelError(f"save_format=gguf can't hold the tokenizer {type(tokenizer).__name__}: {why}. {OTHER_FORMATS}")
