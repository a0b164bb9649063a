"""A run begins with the weights that the configuration names, whatever it is spread over."""

import jax.numpy as jnp
import numpy as np
import pytest
from toy_method import Toy, get_config

from common import initial_weights, sharding, state, target
from common.errors import UserError
from common.program import build


def test_a_run_begins_with_the_weights_that_are_found(monkeypatch):
    program = build(Toy(), get_config(init=("somewhere",), ema_decay=0.9))
    fresh = program.init()

    def fill(method, config, params, model_state):
        assert config.init == ("somewhere",)
        changed = state.flatten(params)
        return {**params, "norm": {**params["norm"], "scale": np.full(16, 3.0, np.float32)}}, (
            model_state if changed else None
        )

    monkeypatch.setattr(initial_weights, "fill", fill)
    begun = program.start()
    for tree in (begun.params, begun.ema):
        leaves = state.flatten(tree)
        for path, leaf in state.flatten(fresh.params).items():
            assert leaves[path].sharding == leaf.sharding
            wanted = 3.0 if path == "norm/scale" else np.asarray(leaf)
            np.testing.assert_array_equal(leaves[path], wanted)


def test_weights_that_are_not_there_are_named():
    with pytest.raises(UserError, match="there is no nowhere"):
        build(Toy(), get_config(init=("nowhere",))).start()


def test_networks_are_told_how_many_examples_a_device_computes_at_once():
    told = []

    class Told(Toy):
        def embed(self, model, inputs):
            told.append(target.share())
            return super().embed(model, inputs)

    config = get_config(batch_size=32, microbatches=2)
    assert build(Told(), config, sharding.abstract_mesh(config, 4)).traced
    assert set(told) == {4} and target.share() == 0


def test_flops_on_tpus_are_those_of_the_form_that_multiplies_with_no_zeros():
    class Padded(Toy):
        def embed(self, model, inputs):
            if target.platform() == "tpu":
                inputs = {name: jnp.concatenate([x, 0 * x]) for name, x in inputs.items()}
            return super().embed(model, inputs)

    config = get_config(batch_size=32)
    mesh = sharding.abstract_mesh(config, 4)
    needed = build(Padded(), config, mesh).flops
    with target.described("tpu"):
        assert build(Padded(), config, mesh).flops == needed > 0
