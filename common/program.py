"""What configurations compile to: the steps of a run, before and after any memory is used."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from common import curriculum, flops, initial_weights, optimizers, sharding, target
from common import state as state_lib
from common import step as step_lib
from common.errors import UserError
from common.method import Method

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a configuration compiles to, before any memory is used."""

    method: Method
    config: Any
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
    like: state_lib.TrainState  # shapes, dtypes and shardings of the state
    specs: dict[str, jax.sharding.PartitionSpec]  # of the parameters
    batch_like: dict[str, jax.ShapeDtypeStruct]
    batch_sharding: jax.sharding.NamedSharding
    init: Any  # () -> TrainState on the devices
    step: Any  # the jitted step

    def start(self) -> state_lib.TrainState:
        """Returns the state that a run begins with, on the devices.

        Raises:
            UserError: weights that ``config.init`` names cannot be used.
        """
        state = self.init()
        if not self.config.init:
            return state
        found = initial_weights.fill(self.method, self.config, state.params, state.model_state)
        wanted = (self.like.params, self.like.model_state)
        places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
        params, model_state = jax.device_put(found, places)
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        return dataclasses.replace(state, params=params, model_state=model_state, ema=ema)

    @functools.cached_property
    def traced(self) -> jax.stages.Traced:
        """The step for the shapes of this configuration, as JAX sees it."""
        examples = self.config.batch_size // self.config.microbatches // self.mesh.size
        with target.sharing(examples):
            return self.step.trace(self.like, self.batch_like)

    @functools.cached_property
    def flops(self) -> float:
        """FLOPs of one step on one device; see `common.flops.count`."""
        if target.platform() == "tpu":
            # Some forms for TPUs fill their products up with zeros, which is no work.
            with target.described(target.NONE):
                return build(self.method, self.config, self.mesh).flops
        return flops.count(self.traced.jaxpr) / self.mesh.size

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step."""
        start = time.perf_counter()
        compiled = self.traced.lower().compile()
        memory = compiled.memory_analysis()
        _log.info(
            "compiled in %.0f s; per step and device %.3g FLOPs, %s of memory",
            time.perf_counter() - start,
            self.flops,
            f"{step_memory(memory) / 2**20:,.0f} MiB" if memory else "an unknown amount",
        )
        return compiled


def build(
    method: Method, config: Any, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None
) -> Program:
    """Returns the program of a method under a configuration.

    Args:
        method: what is trained.
        config: of the run, or of a part of its curriculum.
        mesh: where; None means what ``config.mesh`` says of the devices at hand.

    Raises:
        UserError: mesh, sharding rules or optimizer cannot be as configured.
    """
    mesh = sharding.make_mesh(config) if mesh is None else mesh
    graphdef, shapes = state_lib.abstract(method.build)
    specs = sharding.parameter_specs(shapes, mesh, config.mesh.rules)
    optimizer, schedule = optimizers.create(config.optimizer, config.steps, shapes)

    def create() -> state_lib.TrainState:
        return state_lib.create(method.build, optimizer, config.seed, config.ema_decay > 0)

    like = jax.eval_shape(create)
    state_shardings = sharding.state_shardings(like, mesh, specs)
    batch_sharding = sharding.batch_sharding(mesh)
    like = jax.tree.map(_with_sharding, like, state_shardings)
    batch_like = {
        name: jax.ShapeDtypeStruct(
            (config.batch_size, *spec.shape), spec.dtype, sharding=batch_sharding
        )
        for name, spec in method.views.spec().items()
    }
    whole = functools.partial(sharding.whole, mesh=mesh, specs=specs)
    step = jax.jit(
        step_lib.make_train_step(method, graphdef, optimizer, schedule, config, whole),
        donate_argnums=0,
        out_shardings=(state_shardings, sharding.replicated(mesh)),
    )
    # On CPU, LLVM takes four times longer to optimise this than to compile it; and it runs once.
    hurry = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    init = jax.jit(create, out_shardings=state_shardings, compiler_options=hurry)
    return Program(method, config, mesh, like, specs, batch_like, batch_sharding, init, step)


def _with_sharding(leaf: jax.ShapeDtypeStruct, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


class Course:
    """The compiled steps of a run, each made when its part begins and dropped when it has ended."""

    def __init__(self, config: Any, programs: Sequence[Program]):
        """Takes a run's configuration and the program of each of its parts.

        Raises:
            UserError: the parts do not all train the same state.
        """
        for program in programs[1:]:
            if program.like != programs[0].like:
                raise UserError(
                    "config.curriculum changes the shape of what is trained: "
                    f"{curriculum.describe(program.config, config)}. It may change what the model "
                    "sees, not what it is."
                )
        self.config, self.programs = config, programs
        self.curriculum = curriculum.Curriculum(config)
        self._compiled: dict[int, jax.stages.Compiled] = {}

    def program(self, step: int) -> Program:
        """Returns the program of a step, counted from 0."""
        return self.programs[self.curriculum.part(step)]

    def compiled(self, step: int) -> jax.stages.Compiled:
        """Returns the compiled program of a step; compiles all that take turns around it."""
        parts = self.curriculum.parts(step)
        if not set(parts) <= set(self._compiled):
            self._compiled.clear()
            for part in parts:
                if len(self.programs) > 1:
                    of_part = self.programs[part].config
                    _log.info("step %d: %s", step, curriculum.describe(of_part, self.config))
                self._compiled[part] = self.programs[part].compile()
        return self._compiled[self.curriculum.part(step)]


def step_memory(memory: Any) -> int:
    """Returns the bytes that a step needs on one device, by XLA's plan."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
