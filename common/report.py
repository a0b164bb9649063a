"""A page about a run: ``python -m common.report --workdir=DIR --records=SOURCE --output=FILE``.

One self-contained HTML file with the evaluation table, the training curves, and example clips as
stored, as the networks saw them in training, and as sound. It knows no method: it draws whatever
entries a method's views have.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from common import launch
from common.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

FLAGS = flags.FLAGS

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto;
       padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
img { max-width: 100%; } table { border-collapse: collapse; }
th, td { text-align: left; padding: .3em .8em; border-bottom: 1px solid #ddd; }
.trained { font-weight: 600; } .note, figcaption { color: #555; font-size: .9em; }
figure { margin: 1.5em 0; } code { background: #f3f3f3; padding: .1em .3em; }
"""
_FRAMES = 8  # of a clip that are shown
_CURVES = (
    ("Loss", "loss"),
    ("Agreement of predictions with their targets, means aside", "agreement_"),
    ("Learning rate", "learning_rate"),
    ("Share of their dimensions that embeddings use", "collapse/rank/"),
    ("Clips per second", "clips_per_second"),
)


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("workdir", None, "folder of a run of common.train", required=True)
    flags.DEFINE_string("records", None, "source of the example clips", required=True)
    flags.DEFINE_string("results", "", "JSON of common.evaluate")
    flags.DEFINE_string("output", None, "HTML file to write", required=True)
    flags.DEFINE_integer("examples", 4, "example clips", 1)


def main(argv: list[str]) -> None:
    """Writes the page."""
    if len(argv) > 1:
        raise UserError(f"Unexpected argument {argv[1]!r}: every setting is a --flag=value.")
    from common import config as config_lib

    workdir = pathlib.Path(FLAGS.workdir)
    config = config_lib.read(workdir)
    results = _read_json(FLAGS.results) if FLAGS.results else None
    rows = _read_metrics(workdir / "metrics.jsonl")
    parts = [_heading(config, rows)]
    if results:
        parts.append(_table(results))
    parts.append(_curves(rows))
    parts.append(_examples(config, FLAGS.records, FLAGS.examples))
    output = pathlib.Path(FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    temporary.write_text(_page("".join(parts), config.method))
    temporary.replace(output)
    print(f"Wrote {output}")


def _read_json(path: str) -> dict[str, Any]:
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--results={path} cannot be read ({error}).") from None


def _read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics, one dictionary each."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): --workdir must be the folder of a run of "
            "common.train."
        ) from None
    if not rows:
        raise UserError(f"{path} is empty: the run has not finished a step that it logs.")
    return rows


def _page(body: str, method: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(method)}: a Zoetrope run</title><style>{_STYLE}</style>{body}</html>"
    )


def _heading(config: Any, rows: list[dict[str, float]]) -> str:
    steps = int(rows[-1]["step"])
    return (
        f"<h1>What {html.escape(config.method)} learned</h1>"
        f"<p>{steps:,} of {config.steps:,} steps on batches of {config.batch_size} clips from "
        f"<code>{html.escape(config.data.train)}</code>, seed {config.seed}. "
        f"The loss went from {rows[0]['loss']:.3f} (step {int(rows[0]['step'])}) to "
        f"{rows[-1]['loss']:.3f}.</p>"
    )


def _table(results: Mapping[str, Any]) -> str:
    from common.evaluation import report

    heading, *body = report.cells(results["rows"])
    lines = ["<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in heading) + "</tr>"]
    for row, cells in zip(results["rows"], body, strict=True):
        kind = "trained" if row["features"] == "trained" else "other"
        columns = "".join(f"<td>{html.escape(c)}</td>" for c in cells)
        lines.append(f'<tr class="{kind}">{columns}</tr>')
    remarks = "".join(f"<li>{html.escape(r)}</li>" for r in report.remarks(results["rows"]))
    return (
        "<h2>Frozen features, probed on videos held out</h2>"
        f"<p>{html.escape(results['protocol']['about'])}; percent, with 95% intervals.</p>"
        f"<table>{''.join(lines)}</table><ul class='note'>{remarks}</ul>"
    )


def _curves(rows: list[dict[str, float]]) -> str:
    """Draws what was logged over the steps."""
    from matplotlib.figure import Figure

    drawn = [
        (title, names)
        for title, prefix in _CURVES
        if (names := [name for name in rows[-1] if name.startswith(prefix)])
    ]
    figure = Figure(figsize=(10, 3 * math.ceil(len(drawn) / 2)), layout="constrained")
    for place, (title, names) in enumerate(drawn):
        axis = figure.add_subplot(math.ceil(len(drawn) / 2), 2, place + 1)
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            axis.plot(*zip(*points, strict=True), label=name.removeprefix("collapse/"))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=7)
    return "<h2>Training</h2>" + _image(figure, "curves of training")


def _examples(config: Any, source: str, count: int) -> str:
    """Shows the views of some clips: what the batch holds, and what the networks are given."""
    import jax

    from common import methods
    from common.data import pipeline
    from common.step import example_keys

    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.train, config.batch_size = source, count
    method = methods.create(config)
    batch = next(pipeline.TrainData(config, method.views).batches(0))
    raw = {name: batch[name] for name in method.views.spec()}
    inputs = jax.device_get(method.augment(raw, example_keys(config.seed, 0, count)))
    blocks = [_example(raw, inputs, number) for number in range(count)]
    return (
        "<h2>Example clips and their views</h2><p>For each clip, above: what was cut from the "
        "record. Below: what the networks are given, augmented.</p>" + "".join(blocks)
    )


def _example(raw: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], number: int) -> str:
    from matplotlib.figure import Figure

    pictures = [
        (f"{name}, {what}", array[number])
        for what, entries in (("cut", raw), ("given", inputs))
        for name, array in sorted(entries.items(), key=lambda item: -item[1].ndim)
        if array[number].size > _FRAMES  # the others are single numbers
    ]
    figure = Figure(figsize=(10, 1.35 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axis, (name, array) in zip(axes, pictures, strict=True):
        _draw(axis, array)
        axis.set_ylabel(name.replace(", ", "\n"), fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    return f"<figure>{_image(figure, f'clip {number + 1}')}</figure>"


def _draw(axis: Any, array: np.ndarray) -> None:
    """Draws a clip (T, H, W, C) as a strip, a spectrogram (frames, bins) or a waveform (N,)."""
    import numpy as np

    if array.ndim == 4:
        chosen = np.linspace(0, len(array) - 1, min(_FRAMES, len(array))).astype(int)
        strip = np.concatenate(list(array[chosen]), axis=1)
        if strip.shape[-1] == 2:  # optical flow: the third colour stays neutral
            strip = np.concatenate([strip, np.full_like(strip[..., :1], strip.max() / 2)], -1)
        if strip.dtype != np.uint8:
            low = min(0.0, float(strip.min()))
            strip = np.clip((strip - low) / max(1.0 - low, 1e-6), 0, 1)
        axis.imshow(strip, aspect="equal")
    elif array.ndim == 2:
        axis.imshow(array.T, origin="lower", aspect="auto", cmap="magma")
    else:
        axis.plot(array, linewidth=0.4)
        axis.set_xlim(0, len(array))


def _image(figure: Figure, what: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{data}">'


if __name__ == "__main__":
    launch.run(main, define_flags)
