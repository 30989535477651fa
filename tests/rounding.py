"""How far apart two float32 computations of the same number may lie: from the arithmetic, not from one processor.

    gap = u sqrt(n) size

u = 2^-24 is float32's unit round-off, `size` the largest of the numbers that come out (where terms cancel: of the
terms), n how many products stand in a row. Adding up n terms of random sign, the k-th partial sum is sqrt(k / n) of
the last in size and is rounded by up to u of itself, evenly spread (standard deviation u / sqrt(3)). Every processor
we know adds up in four partial sums at least, n / 4 terms each: the rounding of a sum has the standard deviation

    u / sqrt(3) sqrt(4 sum_{k <= n/4} k / n) size = u sqrt(n / 24) size = 0.2 u sqrt(n) size,

that of the difference of two such sums is sqrt(2) as much, and 3.5 of these are u sqrt(n) size. `size` being the
largest of many numbers, a typical one lies three times further off. (Errors of random sign, growing with sqrt(n):
Higham and Mary 2019, A new approach to probabilistic rounding error analysis.) Through a model the products of one
matrix after the other stand in a row: n is the sum of their inner lengths. A gradient goes through them once more, and
adds up the tokens.

Bit for bit equal is only what one program does twice with the same shapes and threads; such tests stay exact.
"""

import math
from typing import Any

import torch
from torch import Tensor

U = 2.0**-24


def gap(size: float, *products: float) -> float:
    """Between two results of sums of `products` terms, one after the other; `size` of what they add up."""
    return U * math.sqrt(sum(products)) * size


def entropy_gap(entropy: float, tokens: int, logit: float) -> float:
    """Nats, of a plain sum of -p log p: its terms add up, and log p is rounded where the normaliser leaves `logit`."""
    return gap(entropy, tokens) + 2 * U * abs(logit)


def depth(model: Any, tokens: int) -> int:
    """Products in a row of a forward pass over rows of `tokens` tokens: matrices, attention, softmax of the logits."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    config = model.config
    attention = config.num_hidden_layers * (tokens + config.head_dim)
    return sum(p.shape[1] for p in matrices) + config.hidden_size + attention + config.vocab_size


@torch.no_grad()
def largest_logit(model: Any) -> float:
    """Over every token of the vocabulary, each alone in its row."""
    ids_V1 = torch.arange(model.config.vocab_size, device=next(model.parameters()).device)[:, None]
    return float(model(input_ids=ids_V1).logits.abs().max())


def log_prob_gap(model: Any, tokens: int, *, temperature: float = 1.0) -> float:
    """Nats, of a log-probability: twice that of a logit, its own and that of the normaliser. Entropies err by less.

    An entropy moves by sum p |log p + H| times what its logits move, and the sum is about 1 nat.
    """
    return 2 * gap(largest_logit(model) / temperature, depth(model, tokens))


def gradient_gap(model: Any, tokens: int, rows: int) -> float:
    """Of a gradient over `rows` rows, as a share of its size (norm against norm, or its largest element)."""
    return gap(1.0, 2 * depth(model, tokens), rows * tokens)


def mean_gap(each: float, count: int) -> float:
    """Between two means over `count` values that err by `each`, independently."""
    return each / math.sqrt(count)


def parameter_gap(gradient: float, weight: Tensor, *, slope: float) -> Tensor:
    """Of a parameter after a step: `slope` is d step / d gradient at most, and the sum is rounded.

    SGD: the learning rate. Adam: 2 lr / epsilon, where the gradient is 0; so epsilon belongs near the gradients' size.
    """
    return slope * gradient + 2 * U * weight.abs()


def assert_same_gradients(found: Tensor, expected: Tensor, model: Any, *, tokens: int, rows: int) -> None:
    """Two gradients of `model` over the same `rows` rows of `tokens` tokens, however they were added up."""
    allowed = gradient_gap(model, tokens, rows) * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed)
