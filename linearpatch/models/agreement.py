"""Whether two models compute the same logits, by a few tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from linearpatch.models.decoder import cache_of
from linearpatch.models.offload import device_of

# Largest difference of logits, as a part of the largest logit, between models that round differently.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
HALF_PRECISION_TOLERANCE = 5e-2
NUM_CHECK_TOKENS = 16


def allowed_difference(dtype: torch.dtype) -> float:
    """How far logits of one model may be from another's that rounds elsewhere."""
    return TOLERANCE.get(dtype, HALF_PRECISION_TOLERANCE)


@torch.no_grad()
def check_logits_of(model: PreTrainedModel) -> Tensor:
    """Logits of a few tokens, in fp32 on the CPU."""
    logits: Tensor = model(input_ids=_tokens(model), use_cache=False).logits
    return logits.float().cpu()


@torch.no_grad()
def check_logits_with_cache(model: PreTrainedModel) -> Tensor | None:
    """Logits of the last of these tokens, read after the others were cached; None where the family has no cache.

    Tokens are generated, too: transformers asks more of a cache there.
    """
    tokens = _tokens(model)
    settings = {"max_new_tokens": 2, "do_sample": False, "num_beams": 1, "use_cache": True, "pad_token_id": 0}
    model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
    cache = cache_of(model(input_ids=tokens[:, :-1], use_cache=True))
    if not cache:
        return None
    logits: Tensor = model(input_ids=tokens[:, -1:], use_cache=True, **cache).logits
    return logits[:, -1:].float().cpu()


def _tokens(model: PreTrainedModel) -> Tensor:
    embeddings = model.get_input_embeddings()
    return torch.arange(NUM_CHECK_TOKENS, device=device_of(embeddings))[None] * 7 % int(embeddings.weight.shape[0])


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference of logits as a part of the largest one; infinite where shapes differ or one isn't finite."""
    if actual.shape != expected.shape:
        return float("inf")
    relative = ((actual - expected).abs().max() / expected.abs().max()).item()
    return relative if relative == relative else float("inf")
