"""The documentation names only commands, flags and files that exist."""

import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags
from tool_flags import run_without

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VERBS = ("ingest", "inspect", "vocabulary", "train", "evaluate", "retrieve", "export", "embed")
VERBS += ("search", "localise", "report", "plan", "sweep")
TOOLS = (*(f"common.{verb}" for verb in VERBS), "brave.demo", "mil_nce.demo", "frozen.demo")


def commands():
    """Every ``python -m ...`` of the documentation and of the configs, on one line each."""
    texts = [(page.name, page.read_text()) for page in PAGES]
    texts += [(path.name, path.read_text()) for path in (ROOT / "configs").glob("**/*.py")]
    for name, text in texts:
        text = text.replace("\\\n", " ")
        for found in re.finditer(
            r"python -m ((?:common|brave|mil_nce|frozen)\.[\w.]+)((?: +[^\s`|]+)*)", text
        ):
            yield name, found[1], found[2].split("#")[0]


@pytest.mark.parametrize(("page", "module", "arguments"), sorted(set(commands())))
def test_a_command_has_the_flags_that_are_shown(page, module, arguments):
    values = flags.FlagValues()
    tool = importlib.import_module(module)
    known = _flags_of(tool, values)
    for argument in shlex.split(arguments):
        if argument.startswith("--"):
            name = argument[2:].split("=")[0]
            assert name.split(".")[0] in known or name.removeprefix("no") in known, (page, name)


def _flags_of(tool, values):
    """Names of the flags that a tool defines, without leaving them defined."""
    before = set(flags.FLAGS)
    try:
        tool.define_flags()
        return set(flags.FLAGS)
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def test_links_and_named_files_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs" / "promises.md").read_text())
    assert named
    assert all((ROOT / path).exists() for path in named)


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("tool", TOOLS)
def test_help_answers_without_loading_jax_or_tensorflow(tool):
    done = run_without(["jax", "tensorflow", "flax", "sklearn"], tool, "--help")
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout
