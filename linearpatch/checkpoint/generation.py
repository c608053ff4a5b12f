"""Text from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TextStreamer, set_seed

from linearpatch.errors import ConfigError, ModelError, require_range
from linearpatch.models.decoder import decoder_of
from linearpatch.text import printable


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: Tokens to write at most.
        temperature: 0 takes the likeliest token, larger values sample.
        top_p: Sample from the likeliest tokens that hold this share of the probability.
        num_beams: Sequences followed at a time; 1 is no beam search.
        seed: Of the sampling.
        use_cache: Keep keys and values; without, the text is the same and slower to come.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    seed: int = 0
    use_cache: bool = True

    def __post_init__(self) -> None:
        require_range("--max-new-tokens", self.max_new_tokens, low=1)
        require_range("--temperature", self.temperature, low=0)
        require_range("--top-p", self.top_p, low=1e-6, high=1)
        if self.top_p < 1 and not self.temperature:
            raise ConfigError(f"--top-p={self.top_p} samples, but --temperature=0 doesn't. Add --temperature=1.")
        require_range("--num-beams", self.num_beams, low=1)
        require_range("--seed", self.seed, low=0, high=2**32 - 1)

    @property
    def settings(self) -> dict[str, Any]:
        """As arguments of `generate`; what isn't asked for is switched off, whatever the model's defaults."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0} if self.temperature else {}
        return {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "use_cache": self.use_cache,
            "do_sample": bool(self.temperature),
            **{name: sampling.get(name) for name in ("temperature", "top_p", "top_k")},
        }


class _PlainStreamer(TextStreamer):  # type: ignore[misc]
    """Prints what a model writes; control characters as escapes."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(printable(text), stream_end)


def write_text(
    model: PreTrainedModel, tokenizer: Any, prompt: str, decoding: Decoding, *, chat: bool = False, stream: bool = True
) -> str:
    """Continue a prompt, printing tokens as they come.

    Args:
        model: Any causal language model.
        tokenizer: Its tokenizer.
        prompt: Text to continue, or with `chat` a user's message to answer.
        decoding: How tokens are chosen. Beam search settles its text at the end, so that nothing streams.
        chat: Put the prompt into the tokenizer's chat template.
        stream: Print to standard output.

    Returns:
        The new text.

    Raises:
        ConfigError: the prompt is empty, or there is no chat template.
    """
    if not prompt.strip():
        raise ConfigError("The prompt is empty. Give some text to continue.")
    if chat and not tokenizer.chat_template:
        raise ConfigError("--chat needs a chat template, and this tokenizer has none. Leave --chat out.")
    if chat:
        messages = [{"role": "user", "content": prompt}]
        try:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # a template is a program of the model's authors
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"The tokenizer's chat template fails ({type(error).__name__}: {reason}). Correct the model's "
                "chat_template.jinja, or leave --chat out."
            ) from error
    else:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    inputs = inputs.to(decoder_of(model).input_device)
    set_seed(decoding.seed)
    streaming = stream and decoding.num_beams == 1
    streamer = _PlainStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if streaming else None
    with torch.inference_mode():
        output = model.generate(**inputs, streamer=streamer, **decoding.settings)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
