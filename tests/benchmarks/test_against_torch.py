"""What comparisons with PyTorch share: table, check of what is compared, and command line."""

import importlib.util
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import against_torch, step
from benchmarks.against_torch import Cost
from common.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
TORCH = importlib.util.find_spec("torch") is not None


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.step", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_table_has_median_times_their_range_and_the_median_share_within_repeats():
    costs = {
        "ours": [Cost(0.1, 0.2), Cost(0.2, 0.2), Cost(0.9, 0.2)],
        "torch": [Cost(0.2, 0.8), Cost(0.8, 0.8), Cost(0.9, 0.8)],
    }
    wall, cpu = against_torch.table({"forward": costs})
    assert wall == (
        "forward, wall clock: ours 200.0 ms (from 100.0 to 900.0); "
        "torch 800.0 ms (from 200.0 to 900.0), ours 0.50x"
    )
    assert cpu.endswith("torch 800.0 ms (from 800.0 to 800.0), ours 0.25x")


def test_runs_take_turns_after_one_that_does_not_count():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in ("ours", "torch")}
    costs = against_torch.measure(runs, repeats=2)
    assert order == ["ours", "torch"] * 3
    assert {name: len(of_run) for name, of_run in costs.items()} == {"ours": 2, "torch": 2}


def test_a_run_costs_processor_time_where_it_computes_and_wall_time_always():
    cost = Cost.of(lambda: np.linalg.eigvals(np.random.default_rng(0).random((300, 300))))
    assert cost.wall > 0 and cost.cpu > 0


def test_networks_that_do_not_agree_are_not_compared(capsys):
    ours, theirs = {"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 2.5])}
    found = {"ours": ours, "torch": theirs}
    against_torch.check("features", found, {"features": 0.3})
    assert "ours and torch: 2.0e-01 of the largest" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"features differ by more than 0\.1"):
        against_torch.check("features", found, {"features": 0.1})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_agrees_with_nothing(value):
    found = {"ours": {"a": np.array([value])}, "torch": {"a": np.array([1.0])}}
    with pytest.raises(UserError, match="no comparison"):
        against_torch.check("features", found, {"features": 0.1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=64"], "--size has an effect with --against=torch only"),
        (["--network=frozen"], "--network has an effect with --against=torch only"),
        (["--against=torch", "--overhead"], "two measurements; ask for one"),
        (["--against=tf"], "value should be one of <torch>"),
        (["--against=torch", "--network=i3d"], "value should be one of <s3d|frozen>"),
    ],
)
def test_flags_without_effect_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(TORCH, reason="PyTorch is installed")
@pytest.mark.parametrize("network", step.NETWORKS)
def test_without_pytorch_the_message_says_what_to_install(network):
    done = run("--against=torch", f"--network={network}")
    assert done.returncode == 2 and "pip install torch" in done.stderr
    assert "Traceback" not in done.stderr


class _Runner:
    """A network of one parameter."""

    def __init__(self, gradient):
        self._gradient = gradient

    def forward(self):
        return {"features": np.ones(2)}

    def gradients(self):
        return {"weight": np.array([self._gradient])}

    def train(self):
        return 0.0


def _network(theirs):
    """What a module of `benchmarks` says of a network whose gradient is 1 in ours."""
    module = types.SimpleNamespace(
        NAME="Toy", SIZES={"clips": 2, "size": 8}, TOLERANCE={"features": 0.1, "gradients": 0.1}
    )
    module.runners = lambda clips, size: {
        "ours": _Runner(1.0),
        **{f"torch, {n}": _Runner(x) for n, x in theirs.items()},
    }
    return module


@pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")
def test_a_comparison_prints_sizes_differences_and_every_share(monkeypatch, capsys):
    monkeypatch.setitem(
        sys.modules, "benchmarks.toy_against_torch", _network({"a": 1.0, "b": 1.05})
    )
    against_torch.compare("toy", {"size": 16}, repeats=2)
    printed = capsys.readouterr().out
    assert "Toy: 2 clips, 16 size; float32" in printed
    assert "largest difference of gradients, torch, a and torch, b: 4.8e-02" in printed
    for line in ("forward, wall clock", "training step, CPU time"):
        (found,) = [text for text in printed.splitlines() if text.startswith(line)]
        assert found.count("torch, ") == 2 and found.count("ours") == 3


@pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")
def test_networks_with_other_gradients_are_not_timed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "benchmarks.toy_against_torch", _network({"a": 1.5}))
    with pytest.raises(UserError, match="gradients differ by more than"):
        against_torch.compare("toy", {}, repeats=1)
    assert "training step" not in capsys.readouterr().out
