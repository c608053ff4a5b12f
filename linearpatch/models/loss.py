"""Next-token loss in chunks of tokens: no window's logits over the whole vocabulary ever exist."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from linearpatch.models.decoder import Decoder

# Entries of the logits that exist at a time; in fp32 64 MiB. Small enough to stay out of the way of the
# model's own activations, large enough that the head's matrix product runs at full speed.
LOGIT_BUDGET = 2**24


def chunk_length(vocab_size: int) -> int:
    """How many tokens' logits fit the budget."""
    return max(16, LOGIT_BUDGET // vocab_size)


def next_token_nll(decoder: Decoder, normed: Tensor, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token given those before it.

    Args:
        decoder: The model whose head is used.
        normed: Hidden states after the final norm, `[batch, tokens, hidden_size]`.
        input_ids: The tokens they were computed from, `[batch, tokens]`.

    Returns:
        `[batch, tokens - 1]` in fp32, natural logarithm.
    """
    batch, length = input_ids.shape
    hidden = normed[:, :-1].reshape(-1, normed.shape[-1])
    labels = input_ids[:, 1:].reshape(-1)
    losses = []
    step = chunk_length(decoder.vocab_size)
    for start in range(0, len(labels), step):
        logits = decoder.logits(hidden[start : start + step]).float()
        target = labels[start : start + step].to(logits.device)
        losses.append(functional.cross_entropy(logits, target, reduction="none"))
    return torch.cat(losses).view(batch, length - 1)


def stream_nll(decoder: Decoder, stream: Tensor, input_ids: Tensor) -> Tensor:
    """`next_token_nll` of the stream that enters the final norm."""
    return next_token_nll(decoder, decoder.final_norm(stream), input_ids)
