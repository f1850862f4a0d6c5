"""Divergences between the distributions given by two rows of logits.

All take logits as a tensor or as a `LinearLogits` on either side; those of the teacher, except in
`adaptive_kl`, may also be `TopKLogits`. They compute `log_softmax` in fp32, ignore columns that the
teacher excludes with -inf, and are scaled by T^2, which keeps the size of the gradient independent
of the temperature (Hinton et al., 2015, section 2.1). p is the teacher's softened distribution, q
the student's.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from gkd_core.contract.batch import Items
from gkd_core.losses import rules
from gkd_core.losses.chunked import rowwise
from gkd_core.losses.logits import Logits, match_shards
from gkd_core.losses.term import Term
from gkd_core.losses.top_k import TopKLogits


def kl(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
) -> Term:
    """Kullback-Leibler divergence KL(p || q). Zero where they are equal.

    Args:
        student: Logits `[*items, V]`.
        teacher: Logits `[*items, V]`, constant.
        over: The items averaged over.
        temperature: T; both logits are divided by it.
        scale: Whether to multiply by T^2.

    Raises:
        ValueError: The shapes differ.
    """
    return compare(rules.kl, student, teacher, over, temperature, scale)


def soft_cross_entropy(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
) -> Term:
    """Cross-entropy of q under p: `kl` plus the entropy of p.

    The value differs from that of `kl`, the gradient does not. Arguments as for `kl`.
    """
    return compare(rules.soft_cross_entropy, student, teacher, over, temperature, scale)


def reverse_kl(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
) -> Term:
    """Kullback-Leibler divergence KL(q || p).

    It would be infinite where the teacher excludes a column with -inf, so q is the student's
    distribution over the remaining columns. Arguments as for `kl`.
    """
    return compare(rules.reverse_kl, student, teacher, over, temperature, scale)


def js(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
    *,
    beta: float = 0.5,
) -> Term:
    """Generalized Jensen-Shannon divergence (GKD, Agarwal et al., 2024, section 2).

    With m = beta p + (1 - beta) q, it is beta KL(p || m) + (1 - beta) KL(q || m). At T = 1 it is
    at most the entropy of (beta, 1 - beta), which is ln 2 at 0.5. As beta tends to 0, js / beta
    tends to KL(p || q), and as it tends to 1, js / (1 - beta) to KL(q || p); the divergence itself
    tends to 0 at either end, so the ends are rejected rather than given another meaning.

    Args:
        student: Logits `[*items, V]`.
        teacher: Logits `[*items, V]`, constant.
        over: The items averaged over.
        temperature: T; both logits are divided by it.
        scale: Whether to multiply by T^2.
        beta: Share of p in the mixture, above 0 and below 1.

    Raises:
        ValueError: `beta` is not between 0 and 1.
    """
    _check_share("beta", beta, "use kl or reverse_kl for the limits")
    rule = partial(rules.js, beta=beta)
    return compare(rule, student, teacher, over, temperature, scale)


def skew_kl(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
    *,
    alpha: float = 0.1,
) -> Term:
    """Skew divergence KL(p || alpha p + (1 - alpha) q) (DistiLLM, Ko et al., 2024).

    At T = 1 it is at most -ln alpha, and it tends to KL(p || q) as alpha tends to 0.

    Args:
        student: Logits `[*items, V]`.
        teacher: Logits `[*items, V]`, constant.
        over: The items averaged over.
        temperature: T; both logits are divided by it.
        scale: Whether to multiply by T^2.
        alpha: Share of p in the mixture, above 0 and below 1.

    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    _check_share("alpha", alpha, "use kl for 0")
    rule = partial(rules.skew_kl, alpha=alpha)
    return compare(rule, student, teacher, over, temperature, scale)


def skew_reverse_kl(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
    *,
    alpha: float = 0.1,
) -> Term:
    """Skew reverse divergence KL(q || (1 - alpha) p + alpha q) (DistiLLM, Ko et al., 2024).

    At T = 1 it is at most -ln alpha, also where the teacher excludes columns, and it tends to
    KL(q || p) as alpha tends to 0.

    Args:
        student: Logits `[*items, V]`.
        teacher: Logits `[*items, V]`, constant.
        over: The items averaged over.
        temperature: T; both logits are divided by it.
        scale: Whether to multiply by T^2.
        alpha: Share of q in the mixture, above 0 and below 1.

    Raises:
        ValueError: `alpha` is not between 0 and 1.
    """
    _check_share("alpha", alpha, "use reverse_kl for 0")
    rule = partial(rules.skew_reverse_kl, alpha=alpha)
    return compare(rule, student, teacher, over, temperature, scale)


def adaptive_kl(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
    *,
    mu: float = 0.5,
) -> Term:
    """Adaptive divergence g KL(p || q) + (1 - g) KL(q || p) (AKL, Wu et al., 2025).

    g is the share of the teacher's head in the distance between p and q: the sum of abs(p - q)
    over the head, divided by that over all columns. The head consists of the likeliest columns of
    p whose probabilities sum to at most mu, and always of the likeliest. No gradient flows through
    g.

    Args:
        student: Logits `[*items, V]`.
        teacher: Logits `[*items, V]`, constant.
        over: The items averaged over.
        temperature: T; both logits are divided by it.
        scale: Whether to multiply by T^2.
        mu: Probability of the head, above 0 and below 1.

    Raises:
        ValueError: `mu` is not between 0 and 1.
        MethodError: The teacher's logits are `TopKLogits`.
    """
    if isinstance(teacher, TopKLogits):
        teacher.refuse("the head and the tail of the adaptive divergence")
    _check_share("mu", mu, "use reverse_kl or kl for a fixed direction")
    rule = partial(rules.adaptive_kl, mu=mu)
    return compare(rule, student, teacher, over, temperature, scale)


def total_variation(
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float = 1.0,
    scale: bool = True,
) -> Term:
    """Total variation distance: half the sum of the absolute differences; at T = 1 in [0, 1].

    It shrinks as 1 / T when the temperature rises, not as 1 / T^2 like the others. Arguments as
    for `kl`.
    """
    return compare(rules.total_variation, student, teacher, over, temperature, scale)


def cross_entropy(logits: Logits, labels: Tensor, over: Items) -> Term:
    """Cross-entropy of the true classes or tokens.

    Args:
        logits: `[*items, V]`.
        labels: int64 `[*items]`; labels of items that do not count are ignored.
        over: The items averaged over.
    """
    return rowwise(rules.cross_entropy, logits, labels, over)


def compare(
    rule: rules.Rule,
    student: Logits,
    teacher: Logits,
    over: Items,
    temperature: float,
    scale: bool,
    pieces: int = 1,
) -> Term:
    """Compare two rows of logits per item by a rule; `pieces` as for `rowwise`, others for `kl`."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} "
            "differ in shape"
        )
    if isinstance(teacher, TopKLogits):
        teacher.check_temperature(temperature)
    factor = temperature**2 if scale else 1.0
    known = match_shards(teacher, student)
    return rowwise(rule, student, known, over, temperature, factor, pieces)


def _check_share(name: str, share: float, advice: str) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {share}; {advice}")
