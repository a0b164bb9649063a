"""Objectives of Frozen in Time: every caption against every clip of the batch, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from common import contrastive

LOSSES = ("softmax", "max_margin", "sigmoid")
DIRECTIONS = {"sum": 1.0, "mean": 0.5}  # what the two directions of a loss are multiplied by


def softmax_loss(
    text_BD: jax.Array, video_BD: jax.Array, directions: str = "sum", block: int = contrastive.BLOCK
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of finding the clip of a caption and the caption of a clip.

    Bain et al., 2021 (arXiv:2104.00650), equation 1, where scores are cosines divided by a
    temperature; whoever calls divides. Memory is linear in B; see `common.contrastive`.

    Args:
        text_BD, video_BD: embeddings whose inner products are the scores.
        directions: "sum" of both as published, or their "mean" as later code has it (half of it).
        block: see `contrastive.negatives`.

    Returns:
        The loss and metrics, scalars of at least float32; see `_metrics`.
    """
    own_B = contrastive.positives(text_BD, video_BD[:, None])[:, 0]
    others = contrastive.negatives(text_BD, video_BD[:, None], block=block)
    of_texts = (jnp.logaddexp(own_B, others.rows_B) - own_B).mean()
    of_videos = (jnp.logaddexp(own_B, others.columns_B) - own_B).mean()
    loss = DIRECTIONS[directions] * (of_texts + of_videos)
    return loss, _metrics(loss, own_B, others)


def max_margin_loss(
    text_BD: jax.Array,
    video_BD: jax.Array,
    margin: float = 1.0,
    off_diagonal: bool = True,
    block: int = contrastive.BLOCK,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Hinge loss of every other clip and caption that scores within a margin of the right one.

    The published ``MaxMarginRankingLoss``. With a batch of one there is nothing to compare and the
    loss is 0 (published: not a number).

    Args:
        text_BD, video_BD: embeddings whose inner products are the scores; cosines as published.
        margin: by which the right one should score higher.
        off_diagonal: whether the mean is over pairs of different examples, as published
            (``fix_norm``); else each example counts its margin with itself as well.
        block: see `contrastive.negatives`.

    Returns:
        As `softmax_loss`.
    """
    own_B = contrastive.positives(text_BD, video_BD[:, None])[:, 0]
    others = contrastive.negatives(*map(jax.lax.stop_gradient, (text_BD, video_BD[:, None])))
    allowed_B = own_B - margin
    total_B = contrastive.sum_over_others(
        _hinges, text_BD, video_BD, allowed_B, allowed_B, block=block
    )
    batch = len(own_B)
    pairs = batch * (batch - 1) if off_diagonal else batch * batch
    own = 0.0 if off_diagonal else 2 * batch * margin
    loss = (total_B.sum() + own) / (2 * max(pairs, 1))
    return loss, _metrics(loss, own_B, others)


def _hinges(score: jax.Array, of_text: jax.Array, of_video: jax.Array) -> jax.Array:
    """By how much a score is above what it may be, seen from its caption and from its clip."""
    return jax.nn.relu(score - of_text) + jax.nn.relu(score - of_video)


def sigmoid_loss(
    text_BD: jax.Array, video_BD: jax.Array, block: int = contrastive.BLOCK
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Every pair by itself: whether a caption and a clip belong together.

    Zhai et al., 2023 (arXiv:2303.15343), algorithm 1; not in the published code of Frozen in Time.

    Args:
        text_BD, video_BD: embeddings whose inner products are the scores, temperature and bias
            among them.
        block: see `contrastive.negatives`.

    Returns:
        As `softmax_loss`.
    """
    own_B = contrastive.positives(text_BD, video_BD[:, None])[:, 0]
    others = contrastive.negatives(*map(jax.lax.stop_gradient, (text_BD, video_BD[:, None])))
    nothing_B = jnp.zeros_like(own_B)
    total_B = contrastive.sum_over_others(
        _apart, text_BD, video_BD, nothing_B, nothing_B, block=block
    )
    loss = (total_B + jax.nn.softplus(-own_B)).mean()
    return loss, _metrics(loss, own_B, others)


def _apart(score: jax.Array, of_text: jax.Array, of_video: jax.Array) -> jax.Array:
    """Minus the log-probability that two do not belong together."""
    return jax.nn.softplus(score) + 0 * (of_text + of_video)


def _metrics(
    loss: jax.Array, own_B: jax.Array, others: contrastive.Negatives
) -> dict[str, jax.Array]:
    """Returns ``loss``, ``positive_score`` (mean score of a caption with its clip) and the shares
    of captions and of clips that score higher with their own than with all others of the batch.
    """
    own_B = jax.lax.stop_gradient(own_B)
    return {
        "loss": loss,
        "positive_score": own_B.mean(),
        "text_to_video_top1": jnp.mean(own_B > others.row_max_B, dtype=own_B.dtype),
        "video_to_text_top1": jnp.mean(own_B > others.column_max_B, dtype=own_B.dtype),
    }
