"""MIL-NCE's text tower: vectors of words, a dense layer, and the largest value over the words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common.backbones.initializers import torch_linear
from common.data.text import PADDING


class Frozen(nnx.Variable):
    """A table that is part of the model and that no gradient reaches; see `common.state.split`."""


class TextTower(nnx.Module):
    """Embeds sentences as bags of words (Miech et al., 2020, arXiv:1912.06430, section 3.3).

    As published, padding takes part in the maximum like a word of its own, so that how much of it
    there is does not matter, but whether there is any does. With ``masked=True`` it is left out,
    and a sentence without known words is the bias of the last layer.

    ``words`` holds the table. It begins as PyTorch's tables do, standard normal, and zeros for the
    padding, or with vectors from elsewhere (`common.data.word_vectors`).

    Args:
        num_ids: rows of the table: words, and the padding in row 0.
        word_dim: numbers in a vector.
        hidden: width of the hidden layer.
        embedding_dim: width of the result.
        frozen: whether the table stays as it is, as published; otherwise it is trained.
        masked: whether padding is left out of the maximum.
        vectors_VD: the first rows of the table, that of the padding among them; None has none.
        dtype: compute dtype; None follows the parameters.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        num_ids: int,
        *,
        word_dim: int = 300,
        hidden: int = 2048,
        embedding_dim: int = 512,
        frozen: bool = True,
        masked: bool = False,
        vectors_VD: np.ndarray | None = None,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.masked = masked
        table_VD = jax.random.normal(rngs.params(), (num_ids, word_dim), jnp.float32)
        table_VD = table_VD.at[PADDING].set(0.0)
        if vectors_VD is not None:
            table_VD = table_VD.at[: len(vectors_VD)].set(vectors_VD)
        self.words = (Frozen if frozen else nnx.Param)(table_VD)
        self.hidden = torch_linear(word_dim, hidden, dtype=dtype, rngs=rngs)
        self.output = torch_linear(hidden, embedding_dim, dtype=dtype, rngs=rngs)

    def __call__(self, ids_NW: jax.Array) -> jax.Array:
        """Embeds sentences (N, W) of ids, 0 for padding, as (N, D), at least float32.

        Ids outside the table count as its nearest row: only made-up data has any.
        """
        vector_NWD = jnp.take(self.words[...], ids_NW, axis=0, mode="clip")
        said_NWH = nnx.relu(self.hidden(vector_NWD))
        if self.masked:  # nothing is below 0, so zeros never win against a word
            said_NWH = jnp.where((ids_NW != PADDING)[..., None], said_NWH, 0)
        embedding_ND = self.output(said_NWH.max(axis=1))
        return embedding_ND.astype(jnp.promote_types(embedding_ND.dtype, jnp.float32))
