"""MIL-NCE: one clip against bags of candidate narrations (Miech et al., 2020, arXiv:1912.06430)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from common import contrastive

POSITIVES = {"twice": 2, "once": 1}


def mil_nce_loss(
    video_BD: jax.Array,
    text_BKD: jax.Array,
    positives: str = "twice",
    block: int = contrastive.BLOCK,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over clips of -log(P / (P + N)), or of -log(P / (2 P + N)).

    P sums the exponentials of the scores v_i . t_ik of a clip with its own K candidates, N those of
    the clip with all candidates of other clips and of its candidates with all other clips. There
    is neither normalisation nor temperature. Memory is linear in B; see `common.contrastive`.

    Args:
        video_BD: embeddings of the clips.
        text_BKD: embeddings of the K candidate narrations of every clip.
        positives: how often P is in the denominator. "once" is the paper's formula; "twice" is what
            the published code computes, with log 2 as the least loss.
        block: see `contrastive.negatives`.

    Returns:
        The loss and metrics, scalars of at least float32: ``loss``; ``positive_score``, the mean
        score of clips with their own candidates; ``video_to_text_top1``, the share of clips with
        which the best of their own candidates scores above all candidates of other clips;
        ``text_to_video_top1``, the share with which it scores above all pairs of their candidates
        with other clips.
    """
    own_BK = contrastive.positives(video_BD, text_BKD)
    others = contrastive.negatives(video_BD, text_BKD, block=block)
    log_ratio_B = jnp.logaddexp(others.rows_B, others.columns_B) - jax.nn.logsumexp(own_BK, axis=1)
    loss = jnp.logaddexp(log_ratio_B, math.log(POSITIVES[positives])).mean()
    best_B = jax.lax.stop_gradient(own_BK).max(axis=1)
    return loss, {
        "loss": loss,
        "positive_score": jax.lax.stop_gradient(own_BK).mean(),
        "video_to_text_top1": jnp.mean(best_B > others.row_max_B, dtype=own_BK.dtype),
        "text_to_video_top1": jnp.mean(best_B > others.column_max_B, dtype=own_BK.dtype),
    }


def dense_mil_nce(video_BD: jax.Array, text_BKD: jax.Array, positives: str = "twice") -> jax.Array:
    """The same loss as its formula is written, with all B x B x K scores: for comparison."""
    dtype = jnp.promote_types(jnp.result_type(video_BD, text_BKD), jnp.float32)
    video_BD, text_BKD = video_BD.astype(dtype), text_BKD.astype(dtype)
    scores_BBK = jnp.einsum("id,jkd->ijk", video_BD, text_BKD, precision="highest")
    own_BK = jnp.einsum("bbk->bk", scores_BBK)
    columns_BBK = scores_BBK.swapaxes(0, 1)
    if positives == "once":
        itself_BB1 = jnp.eye(len(own_BK), dtype=bool)[..., None]
        columns_BBK = jnp.where(itself_BB1, -jnp.inf, columns_BBK)
    both_BN = jnp.concatenate([scores_BBK, columns_BBK], axis=1).reshape(len(own_BK), -1)
    return jnp.mean(jax.nn.logsumexp(both_BN, axis=1) - jax.nn.logsumexp(own_BK, axis=1))
