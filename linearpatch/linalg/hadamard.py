"""Hadamard matrices for every hidden size that occurs, and their product in O(D log D).

A Hadamard matrix has entries ±1 and orthogonal rows. Sylvester's construction doubles any of them; Paley's
two give orders q + 1 and 2(q + 1) from the squares modulo a prime q. A size D is split into an order of
Paley's and a power of two, H_D = H_{2^k} ⊗ H_m, as in the paper (section 3.3).
"""

from __future__ import annotations

from functools import cache
from math import isqrt

import torch
from torch import Tensor

from linearpatch.errors import ModelError

# Largest power of two that is applied as one matrix product: log2(D) passes over memory would be slower.
LARGEST_FACTOR = 32


def hadamard_matrix(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The normalised Hadamard matrix of this package for a size, `[size, size]`, H Hᵀ = I.

    Raises:
        ModelError: no construction reaches the size.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for factor in hadamard_factors(size):
        matrix = torch.kron(matrix, _signs(factor).to(torch.float64))
    normalised: Tensor = matrix / size**0.5
    return normalised.to(dtype)


def hadamard_transform(values: Tensor) -> Tensor:
    """Multiply the last dimension by the normalised Hadamard matrix: `values @ hadamard_matrix(D)`.

    Args:
        values: `[…, D]` in a floating dtype; the result has its shape, dtype and device.

    Each Kronecker factor is one small matrix product along its own axis: O(D log D) per row.
    """
    size = values.shape[-1]
    factors = hadamard_factors(size)
    product = values.reshape(-1, size)
    rows = len(product)
    for factor in reversed(factors):
        # The axis of this factor is innermost; after its product it becomes the outermost of the row, so
        # that the next factor's axis is innermost in turn and all are back in place at the end.
        matrix = _factor(factor, values.device, values.dtype)
        product = (product.reshape(-1, factor) @ matrix).view(rows, size // factor, factor).transpose(1, 2)
    return product.reshape(values.shape)


@cache
def hadamard_factors(size: int) -> tuple[int, ...]:
    """Orders whose Kronecker product is the matrix of a size; the last is Paley's where there is one."""
    for doublings in reversed(range(size.bit_length())):
        order = size >> doublings
        if order << doublings == size and (order == 1 or _paley_prime(order)):
            break
    else:
        raise ModelError(
            f"No Hadamard matrix of size {size} can be built: {size} is not a power of two times q + 1 or "
            "2(q + 1) for a fitting prime q. Use patch=diag or patch=lstsq, which need none."
        )
    powers = []
    while doublings:
        step = min(doublings, LARGEST_FACTOR.bit_length() - 1)
        powers.append(2**step)
        doublings -= step
    return (*powers, order) if order > 1 else tuple(powers) or (1,)


@cache
def _factor(order: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The normalised matrix of one factor; kept where it is used, since a copy to a GPU waits for what it has to do."""
    matrix: Tensor = _signs(order).to(device, dtype) / order**0.5
    return matrix


@cache
def _signs(order: int) -> Tensor:
    """A Hadamard matrix of one factor with entries ±1, in fp32."""
    if order & (order - 1) == 0:
        matrix = torch.ones(1, 1)
        while len(matrix) < order:
            matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
        return matrix
    prime = _paley_prime(order)
    assert prime is not None
    return _paley_first(prime) if prime == order - 1 else _paley_second(prime)


def _paley_prime(order: int) -> int | None:
    """The prime from which Paley builds a matrix of this order, if any."""
    if _is_prime(order - 1) and (order - 1) % 4 == 3:
        return order - 1
    if order % 2 == 0 and _is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1:
        return order // 2 - 1
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _jacobsthal(prime: int) -> Tensor:
    """Q[i, j] = χ(i − j): 1 for a non-zero square modulo the prime, −1 for a non-square, 0 for zero."""
    character = -torch.ones(prime)
    character[torch.arange(1, prime).square() % prime] = 1
    character[0] = 0
    index = torch.arange(prime)
    return character[(index[:, None] - index[None, :]) % prime]


def _paley_first(prime: int) -> Tensor:
    """Order q + 1 for q ≡ 3 (mod 4): I plus the skew-symmetric conference matrix."""
    matrix = torch.eye(prime + 1)
    matrix[0, 1:], matrix[1:, 0] = 1, -1
    matrix[1:, 1:] += _jacobsthal(prime)
    return matrix


def _paley_second(prime: int) -> Tensor:
    """Order 2(q + 1) for q ≡ 1 (mod 4): each entry of the conference matrix becomes a 2 × 2 block."""
    conference = torch.zeros(prime + 1, prime + 1)
    conference[0, 1:], conference[1:, 0] = 1, 1
    conference[1:, 1:] = _jacobsthal(prime)
    off_diagonal = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(conference, off_diagonal) + torch.kron(torch.eye(prime + 1), diagonal)
