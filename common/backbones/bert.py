"""BERT and DistilBERT: transformers that read a sentence at once, both ways."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from common.data.text import PADDING
from common.errors import UserError

EPSILON = 1e-12  # of every layer norm
INITIALIZER_RANGE = 0.02  # as published


class Bert(nnx.Module):
    """A post-norm transformer over word pieces (Devlin et al., 2018, arXiv:1810.04805).

    Without token types it is DistilBERT (Sanh et al., 2019, arXiv:1910.01108), the text network of
    Frozen in Time; the defaults are those of ``distilbert-base-uncased``. With them it is BERT,
    whose first type the whole sentence gets; its pooler is left out. Numbers and places of dropout
    are those of Hugging Face's implementations: the embeddings, the attention probabilities and the
    output of the MLP, and in BERT the output of the attention as well.

    ``model.eval()`` switches dropout off, ``model.train()`` on.

    Args:
        vocabulary: rows of the table of word pieces, that of the padding among them.
        width: numbers in a token; `num_features`.
        depth: layers.
        heads: attention heads; divide `width`.
        hidden: width of the MLPs.
        positions: tokens that a sentence has at most.
        token_types: rows of the table of token types; 0 has none.
        dropout: share of numbers that are dropped, at every place.
        dtype: compute dtype; None follows the parameters. Norms and softmax are at least float32.
        initializer_range: deviation of the normal that kernels and tables are drawn from. The
            published one is for a width of 768: at 128, sentences are nearly the same to an
            untrained network, and it takes hundreds of steps until it tells them apart; 0.1 is
            enough there.
        remat: recompute each layer in the backward pass instead of storing its activations.
        rngs: source of the initial weights.

    Raises:
        UserError: `heads` does not divide `width`, `dropout` is no share below 1, or
            `initializer_range` is not positive.
    """

    def __init__(
        self,
        vocabulary: int = 30522,
        *,
        width: int = 768,
        depth: int = 6,
        heads: int = 12,
        hidden: int = 3072,
        positions: int = 512,
        token_types: int = 0,
        dropout: float = 0.1,
        initializer_range: float = INITIALIZER_RANGE,
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise UserError(
                f"A text network of width {width} cannot be cut into {heads} heads of equal width; "
                "choose heads that divide it."
            )
        if not 0 <= dropout < 1:
            raise UserError(f"A text network's dropout of {dropout} must be at least 0, below 1.")
        if not initializer_range > 0:
            raise UserError(
                f"A text network's initializer_range of {initializer_range} must be above 0; "
                f"{INITIALIZER_RANGE} is the published one."
            )
        self.num_features, self.dropout, self.remat = width, dropout, remat
        self.deterministic = False
        draw = jax.nn.initializers.normal(initializer_range)
        table = lambda rows: draw(rngs.params(), (rows, width), jnp.float32)  # noqa: E731
        words_VD = table(vocabulary)
        self.words = nnx.Param(words_VD.at[PADDING].set(0.0))
        self.positions = nnx.Param(table(positions))
        self.types = nnx.Param(table(token_types)) if token_types else None
        self.norm = _norm(width, dtype, rngs)
        layer = functools.partial(
            Layer, width, heads, hidden, bool(token_types), dropout,
            kernel_init=draw, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.layers = nnx.List([layer() for _ in range(depth)])

    def __call__(self, ids_BL: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        """Reads sentences: the last of `stages`, with the same arguments and errors."""
        return self.stages(ids_BL, keys_B)[-1]

    def stages(self, ids_BL: jax.Array, keys_B: jax.Array | None = None) -> list[jax.Array]:
        """Tokens (B, L, D) as they are embedded and after each layer, in the compute dtype.

        Padding is seen by no token. The first token always is, so that a sentence of padding alone
        has something to look at, whatever its length. What comes out for padding means nothing.

        Args:
            ids_BL: int32 ids of word pieces, 0 for padding. Those outside the table count as its
                nearest row: only made-up data has any.
            keys_B: one PRNG key per example, of which what is dropped is a pure function; None
                drops nothing.

        Raises:
            UserError: L is more than there are positions.
        """
        batch, length = ids_BL.shape
        if length > self.positions.shape[0]:
            raise UserError(
                f"A sentence of {length} word pieces is longer than the {self.positions.shape[0]} "
                "positions of the text network; cut it there, or give the network more positions."
            )
        if self.deterministic or not self.dropout:
            keys_B = None
        seen_BL = (ids_BL != PADDING).at[:, 0].set(True)
        found = [self._embedded(ids_BL, keys_B)]
        # Tokens side by side: gradients of dense layers are then plain matrix products, which on a
        # CPU take a seventh less time than those of three axes.
        x_ND = found[0].reshape(batch * length, -1)
        for number, layer in enumerate(self.layers, 1):
            layer_keys_B = None if keys_B is None else _folded(keys_B, number)
            run = nnx.remat(_run) if self.remat else _run
            x_ND = run(layer, x_ND, seen_BL, layer_keys_B)
            found.append(x_ND.reshape(batch, length, -1))
        return found

    def _embedded(self, ids_BL: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        x_BLD = jnp.take(self.words[...], ids_BL, axis=0, mode="clip")
        x_BLD += self.positions[: ids_BL.shape[1]]
        if self.types is not None:
            x_BLD += self.types[0]
        return _dropped(self.norm(x_BLD), self.dropout, keys_B, 0)


class Layer(nnx.Module):
    """Attention and an MLP, each added to what came in and followed by a norm.

    Args:
        width: numbers in a token.
        heads: attention heads.
        hidden: width of the MLP.
        drop_attended: whether the output of the attention is dropped from, as in BERT.
        dropout: share of numbers that are dropped.
        kernel_init: what kernels are drawn with.
        dtype: compute dtype.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        drop_attended: bool,
        dropout: float,
        *,
        kernel_init: jax.nn.initializers.Initializer,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        self.heads, self.drop_attended, self.dropout = heads, drop_attended, dropout
        dense = functools.partial(nnx.Linear, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = (dense(width, width) for _ in range(3))
        self.output = dense(width, width)
        self.attention_norm = _norm(width, dtype, rngs)
        self.mlp_in, self.mlp_out = dense(width, hidden), dense(hidden, width)
        self.mlp_norm = _norm(width, dtype, rngs)

    def __call__(
        self, x_ND: jax.Array, seen_BL: jax.Array, keys_B: jax.Array | None = None
    ) -> jax.Array:
        """Maps the tokens of all sentences, N = B * L, to as many.

        Args:
            x_ND: tokens.
            seen_BL: whether a token is looked at.
            keys_B: one PRNG key per example; None drops nothing.
        """
        drop = functools.partial(self._dropped_tokens, keys_B=keys_B)
        y_ND = self.output(self._attended(x_ND, seen_BL, keys_B))
        if self.drop_attended:
            y_ND = drop(y_ND, place=1)
        x_ND = self.attention_norm(x_ND + y_ND)
        y_ND = self.mlp_out(jax.nn.gelu(self.mlp_in(x_ND), approximate=False))
        return self.mlp_norm(x_ND + drop(y_ND, place=2))

    def _attended(self, x_ND: jax.Array, seen_BL: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """What every token gathers from those it may look at, before the output's dense layer."""
        shape = (*seen_BL.shape, self.heads, -1)
        dense = (self.query, self.key, self.value)
        query_BLHE, key_BLHE, value_BLHE = (layer(x_ND).reshape(shape) for layer in dense)
        precise = jnp.promote_types(query_BLHE.dtype, jnp.float32)
        score_BHLM = jnp.einsum(
            "blhe,bmhe->bhlm", query_BLHE, key_BLHE, preferred_element_type=precise
        )
        score_BHLM *= query_BLHE.shape[-1] ** -0.5
        score_BHLM = jnp.where(seen_BL[:, None, None], score_BHLM, jnp.finfo(precise).min)
        weight_BHLM = _dropped(jax.nn.softmax(score_BHLM), self.dropout, keys_B, 0)
        y_BLHE = jnp.einsum("bhlm,bmhe->blhe", weight_BHLM.astype(value_BLHE.dtype), value_BLHE)
        return y_BLHE.reshape(x_ND.shape)

    def _dropped_tokens(self, x_ND: jax.Array, keys_B: jax.Array | None, place: int) -> jax.Array:
        if keys_B is None:
            return x_ND
        x_BLD = x_ND.reshape(len(keys_B), -1, x_ND.shape[-1])
        return _dropped(x_BLD, self.dropout, keys_B, place).reshape(x_ND.shape)


def _run(layer: Layer, x_ND: jax.Array, seen_BL: jax.Array, keys_B: jax.Array | None) -> jax.Array:
    return layer(x_ND, seen_BL, keys_B)


def _norm(width: int, dtype: jnp.dtype | None, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The quick variance, of squares less the square of the mean, loses digits in float32.
    return nnx.LayerNorm(width, epsilon=EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _folded(keys_B: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, number)


def _dropped(x: jax.Array, rate: float, keys_B: jax.Array | None, place: int) -> jax.Array:
    """Sets a share of the numbers of each example to 0 and makes up for it in the others.

    Args:
        x: (B, ...).
        rate: the share.
        keys_B: one PRNG key per example; None leaves all as it is.
        place: tells places apart that are given the same keys.
    """
    if keys_B is None:
        return x
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:]))(_folded(keys_B, place))
    return jnp.where(bits >= jnp.uint32(int(rate * 2**32)), x / (1 - rate), 0)
