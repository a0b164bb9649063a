"""What comparisons with PyTorch share: table, check of what is compared, and command line."""

import importlib.util
import pathlib
import subprocess
import sys

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


@pytest.mark.slow
@pytest.mark.skipif(not TORCH, reason="needs PyTorch: pip install torch")
def test_a_comparison_prints_every_share():
    done = run("--against=torch", "--clips=2", "--frames=8", "--size=64", "--repeats=2")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("forward, wall clock", "training step, CPU time"):
        (found,) = [printed for printed in done.stdout.splitlines() if printed.startswith(line)]
        assert found.count("torch, ") == 2 and found.count("x") >= 2
