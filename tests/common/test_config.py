"""Promise: a mistake in the configuration fails at once and says what would be right."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from toy_method import get_config

from common import config as config_lib
from common.errors import UserError
from configs import brave_demo

FILE = "configs/base.py"


def parse(*arguments: str):
    """Does what a tool does with its command line."""
    values = flags.FlagValues()
    argv = ["tool", *arguments]
    config_lib.define_flag(values, argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise UserError(config_lib.explain(argv, error)) from None
    return config_lib.load(values)


VALID = (f"--config={FILE}", "--config.steps=3", "--config.batch_size=8")


def test_a_key_is_changed_from_the_command_line_and_nothing_else_is():
    config = parse(*VALID, "--config.optimizer.name=adamw", "--config.mesh.rules=.*kernel=0")
    assert (config.steps, config.optimizer.name, config.mesh.rules) == (
        3, "adamw", (".*kernel=0",),
    )  # fmt: skip
    assert config.is_locked
    assert config.optimizer.learning_rate == parse(*VALID).optimizer.learning_rate


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.stepz=3", "no config.stepz. Did you mean config.steps?"),
        ("--config.optimizer.learnin_rate=1", "mean config.optimizer.learning_rate?"),
        ("--config.optimiser.momentum=1", "Did you mean config.optimizer.momentum?"),
        ("--config.learning_rate=1", "Did you mean config.optimizer.learning_rate?"),
        ("--config.steps=many", "config.steps must be of type int"),
        ("--config.steps=1.5", "config.steps must be of type int"),
        ("--config.data.reduced_decode=maybe", "must be of type bool"),
        ("--config.steps=0", "config.steps is 0; it must be at least 1"),
        ("--config.seed=-1", "config.seed is -1; it must not be negative"),
        ("--config.seed=2147483648", "config.seed is 2147483648; it must be below 2147483648"),
        ("--config.remat=blocks", "must be one of ('none', 'block') (the nearest is 'block')"),
        ("--config.ema_decay=1.0", "config.ema_decay is 1.0; it must be in [0, 1)"),
        ("--config.data.default_frame_rate=0.0", "default_frame_rate is 0.0; it must be above 0"),
        ("--config.optimizer.learning_rate=nan", "optimizer.learning_rate is not a number"),
        ("--config.init=/a,/b", """must be of type tuple, such as "('A', 'B')\""""),
        ("--config.mesh.rules=(0,)", "config.mesh.rules is (0,); it must be texts such as"),
        ("--config.data=3", "config.data is a group of keys: data.block_size, "),
        ("--config.microbatches=3", "batch_size=8 cannot be cut into config.microbatches=3"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(argument, says):
    with pytest.raises(UserError) as error:
        parse(*VALID, argument)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--config.model.frame_rate=-1.0", "model.frame_rate is -1.0; it must be above 0"),
        ("--config.model.narrow.stride=0", "narrow.stride is 0; it must be above 0"),
        ("--config.model.narrow.width=nan", "narrow.width is not a number"),
        ("--config.model.narrow.blocks=()", "narrow.blocks is (); it must be block counts"),
        ("--config.model.narrow.blocks=(-1,1)", "it must be block counts such as (3, 4, 6, 3)"),
        ("--config.model.flip=-1.0", "model.flip is -1.0; it must be from 0 to 1"),
        ("--config.model.audio.num_samples=0", "audio.num_samples is 0; it must be above 0"),
    ],
)
def test_lengths_rates_and_shares_of_a_method_are_checked_at_once(argument, says):
    with pytest.raises(UserError) as error:
        parse("--config=configs/brave_demo.py:smoke", argument)
    assert says in str(error.value)


@pytest.mark.parametrize("overrides", [(), ("--config.steps=3",)])
def test_a_missing_file_is_named_with_the_nearest_one(overrides):
    with pytest.raises(UserError, match="no file 'configs/bas.py'. Did you mean 'configs/base.py'"):
        parse("--config=configs/bas.py", *overrides)


def test_a_variant_of_a_file_that_has_none_is_an_error():
    with pytest.raises(UserError, match=r"configs/base.py has no variants"):
        parse(f"--config={FILE}:smoke")


def test_a_configuration_survives_being_written_and_read():
    config = get_config(mesh__rules=("a=0", "b=1"), optimizer__learning_rate=1e-3)
    again = config_lib.from_json(config_lib.to_json(config))
    assert again == config and again.is_locked
    assert isinstance(again.mesh.rules, tuple)


def test_a_run_of_an_older_version_has_what_came_later_at_its_default(tmp_path):
    config = brave_demo.get_config("smoke")
    older = config.to_dict()
    del older["hosts"], older["data"]["reads"], older["model"]["decorrelation"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    found = config_lib.read(tmp_path)
    assert found.data.reads == 0 and found.hosts == config.hosts and found.is_locked
    assert found.model.decorrelation == 0.0  # that of the method, not of this run
    with pytest.raises(UserError, match="config.model.decorrelation: 0.0 there, 0.02 now"):
        config_lib.claim(config, tmp_path)


def test_a_run_continues_only_under_its_own_configuration(tmp_path):
    config_lib.claim(get_config(), tmp_path)
    config_lib.claim(get_config(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as error:
        config_lib.claim(get_config(optimizer__momentum=0.5, seed=1), tmp_path)
    assert "config.optimizer.momentum: 0.9 there, 0.5 now" in str(error.value)
    assert "config.seed: 0 there, 1 now" in str(error.value)
    assert (tmp_path / "config.json").read_text() == before


def test_what_does_not_change_the_result_may_change_between_restarts(tmp_path):
    config_lib.claim(get_config(), tmp_path)
    changed = get_config(log_every=7, data__threads=3, keep_checkpoints=9, mesh__data=1)
    config_lib.claim(changed, tmp_path)
    assert config_lib.read(tmp_path) == changed


def test_a_run_gets_longer_only_where_the_schedule_does_not_depend_on_its_length(tmp_path):
    config_lib.claim(get_config(), tmp_path / "cosine")
    with pytest.raises(UserError, match=r"config\.steps: 8 there, 9 now"):
        config_lib.claim(get_config(steps=9), tmp_path / "cosine")
    config_lib.claim(get_config(optimizer__schedule="constant"), tmp_path / "constant")
    config_lib.claim(get_config(optimizer__schedule="constant", steps=9), tmp_path / "constant")


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        config_lib.read(tmp_path)


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "common.train", *arguments]
    root = pathlib.Path(config_lib.__file__).parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_help_names_the_flags_and_succeeds():
    result = tool("--help")
    assert result.returncode == 0
    assert "--config" in result.stdout and "--workdir" in result.stdout


def test_the_command_line_answers_mistakes_with_one_message_and_status_2(tmp_path):
    result = tool(f"--workdir={tmp_path / 'run'}", f"--config={FILE}", "--config.stepz=3")
    assert result.returncode == 2
    assert "Did you mean config.steps?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
