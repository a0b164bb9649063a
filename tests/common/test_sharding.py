"""Promise: where arrays lie is decided by rules that fail loudly, and by nothing else."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec
from toy_method import Toy, get_config

from common import program, sharding, state
from common.errors import UserError

SHAPES = {
    "trunk": {"kernel": jax.ShapeDtypeStruct((6, 8), "float32")},
    "head": {
        "kernel": jax.ShapeDtypeStruct((8, 3), "float32"),
        "bias": jax.ShapeDtypeStruct((3,), "float32"),
    },
}


class Mesh:
    """Stands for a mesh of eight devices where there is one."""

    shape = {"data": 4, "fsdp": 2}


def test_the_first_rule_that_matches_decides_and_the_rest_is_replicated():
    specs = sharding.parameter_specs(SHAPES, Mesh(), ("trunk/.*=1", ".*kernel=0"))
    assert specs == {
        "trunk/kernel": PartitionSpec(None, "fsdp"),
        "head/kernel": PartitionSpec("fsdp", None),
        "head/bias": PartitionSpec(),
    }


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("kernel", "'kernel' is not of the form PATTERN=AXIS (there is no '=')"),
        (".*kernel=first", "is not of the form PATTERN=AXIS"),
        ("(=0", "is not of the form PATTERN=AXIS"),
        ("kernel=0", "must match a whole path such as"),
        (".*kernels=0", "decides about no parameter"),
        (".*bias=1", "cannot split head/bias of shape (3,) into 2 along axis 1"),
        ("head/.*=0", "cannot split head/bias of shape (3,) into 2 along axis 0"),
    ],
)
def test_a_rule_that_cannot_be_is_an_error(rule, says):
    with pytest.raises(UserError) as error:
        sharding.parameter_specs(SHAPES, Mesh(), (rule,))
    assert says in str(error.value)


def test_a_rule_that_comes_too_late_is_an_error():
    with pytest.raises(UserError, match="'trunk/kernel=1' decides about no parameter"):
        sharding.parameter_specs(SHAPES, Mesh(), (".*kernel=0", "trunk/kernel=1"))


def test_the_table_lists_every_parameter_with_its_partition():
    specs = sharding.parameter_specs(SHAPES, Mesh(), ("trunk/.*=1",))
    lines = sharding.table(SHAPES, specs).splitlines()
    assert len(lines) == 1 + 3 + 1
    (trunk,) = [line for line in lines if line.startswith("trunk/kernel")]
    assert trunk.split() == ["trunk/kernel", "6x8", "float32", "48", "-,", "fsdp"]
    assert lines[-1].split() == ["total", "75"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mesh__fsdp": 3}, "config.mesh.fsdp=3 does not divide the 1 devices"),
        ({"mesh__data": 2}, "is not the number of devices, 1"),
        ({"microbatches": 5}, "it must be a multiple of 5"),
    ],
)
def test_a_mesh_that_cannot_be_is_an_error(changes, says):
    with pytest.raises(UserError) as error:
        sharding.make_mesh(get_config(**changes))
    assert says in str(error.value)


def test_what_mirrors_a_parameter_lies_as_it_does():
    config = get_config(optimizer__name="adam", ema_decay=0.9, mesh__rules=(".*kernel=1",))
    like = program.build(Toy(), config).like
    split = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
        if "fsdp" in leaf.sharding.spec
    }
    kernels = [path for path in state.flatten(like.params) if path.endswith("kernel")]
    assert len(kernels) == 2
    assert len(split) == 4 * len(kernels)  # parameter, moving average, two moments
