"""How every command line tool begins: stray arguments are mistakes."""

import os
import subprocess
import sys

import pytest

TOOL = """
from common import launch

def main(argv):
    print("arguments:", *argv[1:])

launch.run(main, lambda: None, takes_arguments={})
"""


def _run(takes_arguments, *arguments):
    program = [sys.executable, "-c", TOOL.format(takes_arguments), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_an_argument_that_is_no_flag_is_refused_unless_the_tool_takes_some():
    done = _run(False, "stray", "other")
    assert done.returncode == 2
    assert done.stderr == "error: Unexpected argument 'stray': every setting is a --flag=value.\n"
    assert done.stdout == ""
    done = _run(True, "one", "two")
    assert (done.returncode, done.stdout) == (0, "arguments: one two\n")


@pytest.mark.slow
def test_the_home_is_put_in_where_shells_do_not(tmp_path):
    program = TOOL.replace("lambda: None", "lambda: flags.DEFINE_string('out', '', '')")
    program = program.replace("*argv[1:]", "flags.FLAGS.out").format(False)
    program = f"from absl import flags\n{program}"
    for value, expected in (("~/a b", f"{tmp_path}/a b"), ("~tmp/x", "~tmp/x"), ("x~/y", "x~/y")):
        done = subprocess.run(
            [sys.executable, "-c", program, f"--out={value}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert done.stdout == f"arguments: {expected}\n", done.stderr


@pytest.mark.slow
def test_a_flag_that_is_left_empty_is_no_folder():
    done = subprocess.run(
        [sys.executable, "-m", "common.train", "--config=configs/brave_demo.py", "--workdir="],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--workdir= is empty; is a variable of the shell not set?" in done.stderr


@pytest.mark.parametrize(
    "error", ["PermissionError(13, 'Permission denied', 'x')", "OSError(28, 'full', 'x')"]
)
def test_a_file_that_may_not_be_used_is_a_message_and_no_stack_trace(error):
    program = TOOL.format(False).replace("    print", f"    raise {error}\n    print")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: [Errno ") and "'x'" in done.stderr


@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        ("train", ["--workdir=x", "--config=configs/brave_demo.py"]),
        ("retrieve", ["--test=x"]),
        ("vocabulary", ["--output=x"]),
        ("data.playground", ["--output=x"]),
    ],
)
def test_a_stray_argument_is_named_before_a_tool_does_anything(tool, flags):
    command = [sys.executable, "-m", f"common.{tool}", *flags, "stray"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Unexpected argument 'stray'" in done.stderr
    assert "Traceback" not in done.stderr
