"""What Frozen in Time makes of its settings, and what its networks promise beside the numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_brave
from flax import nnx

from common import methods, state
from common.errors import UserError
from common.method import COSINE
from common.step import example_keys, make_train_step
from configs import frozen_base
from frozen.method import SPACE

BATCH, WORDS = 4, 6
PLAIN = {"model__flip": 0.0, "model__text__dropout": 0.0}
MOVING = {"model__video__input": "difference"}
DROPPING = {"model__text__dropout": 0.5}


def make_config(**changes):
    config = frozen_base.smoke(frozen_base.get_config())
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in changes.items()})
    return config.lock()


@functools.cache
def _created(changes):
    """A method, a model of it, and its embeddings and the gradient of its loss, compiled once."""
    config = make_config(**dict(changes))
    method = methods.create(config)
    made = tiny_brave.random_state(method, config, seed=0)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: method.build(nnx.Rngs(0))))
    model = state.merge(graphdef, made.params, made.model_state)

    def embed(params, batch, keys_B):
        model = state.merge(graphdef, params, made.model_state)
        return method.embed(model, method.augment(batch, keys_B))

    def loss(chosen, params, batch, keys_B):
        return method.objective(embed({**params, **chosen}, batch, keys_B))[0]

    return method, model, jax.jit(embed), jax.jit(jax.grad(loss))


def create(**changes):
    """A method and a model of it, of random numbers: attention in time begins as nothing."""
    return _created(tuple(sorted(changes.items())))[:2]


def embedded(batch, step=0, order=slice(None), **changes):
    """The embeddings of a batch in training."""
    _, model, embed, _ = _created(tuple(sorted(changes.items())))
    return embed(state.split(model)[0], batch, example_keys(0, step, BATCH)[order])


def gradient(batch, *names, **changes):
    """The gradient of the loss of a batch, by all parameters or by some of them."""
    _, model, _, gradient_of = _created(tuple(sorted(changes.items())))
    params = state.split(model)[0]
    chosen = {name: params[name] for name in names or params}
    return gradient_of(chosen, params, batch, example_keys(0, 0, BATCH))


def first(choose, **changes):
    """What is chosen of a model as it begins; nothing else is computed."""
    method = methods.create(make_config(**changes))
    return jax.jit(lambda: choose(method.build(nnx.Rngs(0))))()


def make_batch(length=4, **more):
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 256, (BATCH, length, 32, 32, 3), np.uint8),
        "text": rng.integers(1, 999, (BATCH, WORDS), np.int32),
        **more,
    }


# ------------------------------------------------------------------------------------- encoders


def test_encoders_say_what_they_take_and_give_and_which_share_a_space(tmp_path):
    pieces = tmp_path / "pieces.txt"
    pieces.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nball\n")
    lengths = {"model__evaluation_frames": 3, "model__text__max_pieces": 4}
    method = methods.create(make_config(model__text__pieces=str(pieces), **lengths))
    video, joint, text = (method.encoders[name] for name in ("video", "video_joint", "text"))
    assert (video.space, joint.space, text.space) == ("", SPACE, SPACE)
    assert joint.similarity == text.similarity == COSINE
    assert video.inputs == joint.inputs
    assert dataclasses.astuple(video.inputs) == (3, 0.0, 1, 32, True, 32)
    ids_BL = text.inputs.tokenise(["Ball ball"])
    assert ids_BL.tolist() == [[2, 4, 4, 3, 0, 0, 0, 0]], "not cut as in training"
    assert text.inputs.words(ids_BL) == ["ball ball"]
    assert text.inputs.known(text.inputs.tokenise(["a ball", "cats"])).tolist() == [True, False]
    model = nnx.eval_shape(lambda: method.build(nnx.Rngs(0)))
    assert model.text.words.shape[0] == 5
    for encoder in (video, joint):
        for frames in (1, 3):  # a picture is a clip of one frame
            found = nnx.eval_shape(encoder.embed, model, make_batch(frames)["video"])
            assert found.shape == (BATCH, encoder.dim) and found.dtype == np.float32
    assert nnx.eval_shape(text.embed, model, ids_BL).shape == (1, text.dim)


@pytest.mark.slow
def test_training_compares_what_the_encoders_give():
    method, model = create(**PLAIN)
    batch = make_batch()
    found = embedded(batch, **PLAIN)
    for name, encoder in (("video", "video_joint"), ("text", "text")):
        features_BD = jax.jit(method.encoders[encoder].embed)(model, batch[name])
        unit_BD = features_BD / jnp.linalg.norm(features_BD, axis=1, keepdims=True)
        scale = {"video": 1.0, "text": 1 / 0.05}[name]
        np.testing.assert_allclose(found[name], scale * unit_BD, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------- images, videos and masks


@pytest.mark.slow
def test_an_image_alone_is_what_it_is_among_videos_in_a_masked_batch():
    batch = make_batch(frames=np.array([4, 1, 3, 1], np.int32))
    together_BD = embedded(batch, **PLAIN)["video"]
    for number, frames in ((0, 4), (1, 1), (3, 1)):
        alone = {"video": batch["video"][:, :frames], "text": batch["text"]}
        alone_BD = embedded(alone, **PLAIN)["video"]
        np.testing.assert_allclose(together_BD[number], alone_BD[number], atol=1e-5)
    whole_BD = embedded({**batch, "frames": np.full(BATCH, 4, np.int32)}, **PLAIN)["video"]
    moved_B = np.abs(whole_BD - together_BD).max(1)
    assert moved_B[0] == 0 and all(moved_B[1:] > 1e-3), "padding would have been seen"


@pytest.mark.slow
def test_what_padding_holds_changes_neither_embeddings_nor_gradients():
    batch = make_batch(frames=np.array([4, 1, 3, 2], np.int32))
    video = batch["video"].copy()
    for clip, frames in zip(video, batch["frames"], strict=True):
        clip[frames:] = 255
    other = {**batch, "video": video}
    for of in (embedded, gradient):
        wanted, found = (jax.tree.leaves(of(b, **PLAIN)) for b in (batch, other))
        for one, same in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one, same)


# --------------------------------------------------------------------------------------- dropout


@pytest.mark.slow
def test_dropout_is_a_function_of_the_key_of_each_example():
    batch, order = make_batch(), np.array([2, 0, 3, 1])
    whole_BD = embedded(batch, **DROPPING)["text"]
    permuted = {name: entries[order] for name, entries in batch.items()}
    permuted_BD = embedded(permuted, order=order, **DROPPING)["text"]
    np.testing.assert_allclose(permuted_BD, whole_BD[order], rtol=1e-4, atol=1e-4)
    other_BD = embedded(batch, step=1, **DROPPING)["text"]
    assert all(np.abs(other_BD - whole_BD).max(1) > 0.1)


@pytest.mark.slow
def test_cached_microbatches_give_the_gradient_of_the_whole_batch_with_dropout_and_flips():
    """Were randomness drawn per microbatch, the second of two would be given other draws."""
    batch = make_batch()
    method, model = create(**DROPPING)
    params, model_state = state.split(model)
    learning = optax.sgd(1.0)
    begun = state.TrainState(
        step=jnp.zeros((), jnp.int32), params=params, model_state=model_state,
        opt_state=learning.init(params), ema=None, finite=jnp.ones((), bool),
    )  # fmt: skip
    config = make_config(**DROPPING, microbatches=2)
    step = make_train_step(
        method, nnx.graphdef(model), learning, optax.constant_schedule(1.0), config
    )
    after, metrics = jax.jit(step)(begun, batch)
    wanted = gradient(batch, **DROPPING)
    largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    moved = jax.tree.map(jnp.subtract, params, after.params)
    for one, other in zip(*map(jax.tree.leaves, (wanted, moved)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * largest)
    loss, _ = method.objective(embedded(batch, **DROPPING))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


TEMPERATURE = {**PLAIN, "model__learn_temperature": True, "model__temperature": 0.1}
SIGMOID = {**TEMPERATURE, "model__loss": "sigmoid"}


@pytest.mark.slow
def test_a_learned_temperature_begins_at_the_set_one_and_gets_a_gradient():
    begun = first(lambda model: model.log_scale[...], **TEMPERATURE)
    np.testing.assert_allclose(np.exp(begun), 10, rtol=1e-6)
    slope = gradient(make_batch(), "log_scale", **TEMPERATURE)["log_scale"]
    assert np.isfinite(slope) and abs(slope) > 1e-3


def test_a_learned_temperature_is_never_below_a_hundredth():
    method, model = create(**TEMPERATURE)
    for log_scale, length in ((1.0, np.e), (9.0, 100.0)):
        model = nnx.clone(model)
        model.log_scale.set_value(jnp.float32(log_scale))
        np.testing.assert_allclose(model._scale(), length, rtol=1e-5)


def test_a_learned_temperature_cannot_begin_where_it_has_no_gradient():
    with pytest.raises(UserError, match="config.model.temperature is 0.01; it must be above 0.01"):
        create(**TEMPERATURE | {"model__temperature": 0.01})
    create(**PLAIN, model__temperature=0.005)


@pytest.mark.slow
def test_the_sigmoid_loss_learns_a_bias_that_begins_at_minus_ten():
    assert first(lambda model: model.bias[...], **SIGMOID) == -10
    slopes = gradient(make_batch(), "bias", "log_scale", **SIGMOID)
    assert all(np.isfinite(slope) and abs(slope) > 1e-6 for slope in slopes.values())


@pytest.mark.slow
def test_the_scores_of_the_sigmoid_loss_are_scaled_cosines_plus_the_bias():
    _, model = create(**SIGMOID)
    found = embedded(make_batch(), **SIGMOID)
    scores_BB = found["text"] @ found["video"].T
    scaled_BB = found["text"][:, :-1] @ found["video"][:, :-1].T
    assert jnp.abs(scaled_BB).max() <= np.exp(model.log_scale[...]) * (1 + 1e-5)
    np.testing.assert_allclose(scores_BB, scaled_BB + model.bias[...], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("learn", [False, True])
def test_the_max_margin_loss_compares_cosines_whatever_the_temperature(learn):
    margin = {"model__loss": "max_margin", "model__learn_temperature": learn}
    _, model = create(**margin, model__temperature=0.01)
    assert model.log_scale is None
    assert model._scale() == 1.0


def test_nothing_is_learned_beside_the_networks_unless_it_is_asked_for():
    _, model = create()
    assert model.log_scale is None and model.bias is None


# ------------------------------------------------------------------------------ precision, colours


@pytest.mark.slow
def test_bfloat16_stays_near_float32_and_its_embeddings_are_float32():
    batch, rough = make_batch(), {**PLAIN, "compute_dtype": "bfloat16"}
    _, model = create(**rough)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.split(model)[0])} == {np.dtype(np.float32)}
    exact = embedded(batch, **PLAIN)
    for name, rough_BD in embedded(batch, **rough).items():
        assert rough_BD.dtype == np.float32
        distance_B = jnp.linalg.norm(rough_BD - exact[name], axis=1)
        share_B = distance_B / jnp.linalg.norm(exact[name], axis=1)
        assert all(share_B > 1e-5), "it was not computed in bfloat16"
        assert all(share_B < 0.05)


@pytest.mark.parametrize(("colours", "black"), [("half", (-1, -1, -1)), ("imagenet", None)])
def test_colours_are_brought_to_what_the_network_knows(colours, black):
    black = black or (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225)
    method = methods.create(make_config(model__colours=colours))
    batch = {**make_batch(), "video": np.zeros((BATCH, 1, 32, 32, 3), np.uint8)}
    video = method.augment(batch, example_keys(0, 0, BATCH))["video"]
    np.testing.assert_allclose(video, np.broadcast_to(black, video.shape), rtol=1e-6)


@pytest.mark.parametrize(("flip", "mirrored"), [(0.0, False), (1.0, True)])
def test_all_frames_of_a_clip_are_mirrored_together_as_often_as_is_said(flip, mirrored):
    method = methods.create(make_config(model__flip=flip, model__colours="half"))
    batch = make_batch()
    given = method.augment(batch, example_keys(0, 0, BATCH))["video"]
    wanted = batch["video"][:, :, :, ::-1] if mirrored else batch["video"]
    np.testing.assert_allclose(given, wanted / 127.5 - 1, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["half", "imagenet"])
def test_of_differences_the_network_sees_what_changes_in_training_and_afterwards(colours):
    moving = {**MOVING, "model__colours": colours, **PLAIN}
    method, model = create(**moving)
    video = make_batch()["video"] // 2
    batch, brighter = ({**make_batch(), "video": x} for x in (video, video + 60))
    given = method.augment(batch, example_keys(0, 0, BATCH))["video"]
    deviation = {"half": 0.5, "imagenet": np.array([0.229, 0.224, 0.225])}[colours]
    wanted = np.diff(video.astype(np.float32) / 255, axis=1) / deviation
    np.testing.assert_allclose(given, wanted, atol=1e-5)
    embed = jax.jit(method.encoders["video_joint"].embed)
    one_BD, same_BD = embed(model, video), embed(model, brighter["video"])
    np.testing.assert_allclose(one_BD, same_BD, rtol=1e-3, atol=1e-4)
    assert np.abs(one_BD - embed(model, video[:, ::-1])).max() > 1e-3
    unit_BD = one_BD / jnp.linalg.norm(one_BD, axis=1, keepdims=True)
    np.testing.assert_allclose(embedded(batch, **moving)["video"], unit_BD, rtol=1e-3, atol=1e-4)


# -------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__loss": "hinge"}, "loss is 'hinge'; it must be one of softmax, max_margin, sigmo"),
        ({"model__directions": "both"}, "directions is 'both'; it must be one of sum, mean"),
        ({"model__colours": "clip"}, "colours is 'clip'; it must be one of imagenet, half"),
        ({"model__temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"model__temperature": float("nan")}, "temperature is nan; it must be above 0"),
        ({"model__text__max_pieces": 1}, "max_pieces is 1; it must be from 2 to .*positions, 8"),
        ({"model__text__max_pieces": 9}, "max_pieces is 9; it must be from 2 to .*positions, 8"),
        ({"model__text__evaluation_pieces": 1}, "evaluation_pieces is 1; it must be from 2 to"),
        ({"model__text__evaluation_pieces": 9}, "evaluation_pieces is 9; it must be from 2 to"),
        ({"model__evaluation_frames": 0}, "evaluation_frames is 0; it must be from 1 to .*, 4"),
        ({"model__evaluation_frames": 5}, "evaluation_frames is 5; it must be from 1 to .*, 4"),
        ({"model__video__num_frames": 9}, "num_frames is 9; it must be from 1 to"),
        ({"model__video__sampling": "all"}, "sampling is 'all'; it must be one of"),
        ({"model__video__input": "flow"}, "video.input is 'flow'; it must be one of rgb, diff"),
        ({**MOVING, "model__video__num_frames": 1}, "num_frames is 1; .*it must be at least 2"),
        ({**MOVING, "model__evaluation_frames": 1}, "evaluation_frames is 1; .* at least 2"),
        ({**MOVING, "model__video__short": "mask"}, "Use short='repeat'"),
        ({"model__video__heads": 3}, "width=32 cannot be divided by heads=3"),
        ({"model__video__patch": 5}, "size=32 cannot be divided by patch=5"),
        ({"model__video__activation": "relu"}, "activation"),
        ({"model__text__heads": 5}, "width 32 cannot be cut into 5 heads"),
        ({"model__text__dropout": 1.0}, "dropout of 1.0 must be at least 0, below 1"),
        ({"model__text__pieces": "/none/vocab.txt"}, "/none/vocab.txt"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        methods.create(make_config(**changes))
