"""A page about a run: ``python -m common.report --workdir=DIR --records=SOURCE --output=FILE``.

One self-contained HTML file with the tables of evaluations, the training curves, and example clips
as stored, as the networks saw them in training, as sound and as words. It knows no method: it shows
whatever entries a method's views have.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from common import clock, launch, waits
from common.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from common.evaluation.result_tables import Table
    from common.method import Encoder

FLAGS = flags.FLAGS

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto;
       padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #ccc; }
img { max-width: 100%; } table { border-collapse: collapse; font-size: .8em; }
th, td { text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; } .wide { overflow-x: auto; }
.trained { font-weight: 600; } .note, figcaption { color: #555; font-size: .9em; }
figure { margin: 1.5em 0; } code { background: #f3f3f3; padding: .1em .3em; }
"""
_FRAMES = 8  # of a clip that are shown
_CURVES = (  # title, and the metrics whose names match
    ("Loss", r"^(validation/)?loss"),
    ("Agreement of predictions with their targets, means aside", r"^agreement_"),
    ("Share of a batch that scores highest with its own", r"_top1$"),
    ("Score of what belongs together", r"^positive_score$"),
    ("Learning rate", r"^learning_rate$"),
    ("Share of their dimensions that embeddings use", r"^collapse/rank/"),
    ("Clips per second", r"^clips_per_second$"),
    ("Host memory, bytes", r"^host_memory$"),
)


def define_flags() -> None:
    """Defines the command line."""
    flags.DEFINE_string("workdir", None, "folder of a run of common.train", required=True)
    flags.DEFINE_string("records", None, "source of the example clips", required=True)
    flags.DEFINE_list("results", [], "JSON of common.evaluate, retrieve or localise")
    flags.DEFINE_string("output", None, "HTML file to write", required=True)
    flags.DEFINE_integer("examples", 4, "example clips", 1)


def main(_: list[str]) -> None:
    """Writes the page."""
    from common import attachments, methods
    from common import config as config_lib
    from common.evaluation import result_tables

    launch.refuse_folder("output")
    workdir = pathlib.Path(FLAGS.workdir)
    config = attachments.found(config_lib.read(workdir), workdir)
    results = [result_tables.read(path) for path in FLAGS.results]
    rows = _read_metrics(workdir / "metrics.jsonl")
    title = methods.create(config).title
    parts = [_heading(title, config, rows)]
    parts += [_table(table) for one in results for table in result_tables.tables(one)]
    parts += [_curves(rows), _time(rows)]
    parts.append(_examples(config, FLAGS.records, FLAGS.examples))
    output = pathlib.Path(FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.part")
    temporary.write_text(_page("".join(parts), title), encoding="utf-8")
    temporary.replace(output)
    print(f"Wrote {output}")


def _read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics, one dictionary each."""
    try:
        # What a process that was killed had begun to write is no line yet.
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = [json.loads(line) for line in whole.splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): --workdir must be the folder of a run of "
            "common.train."
        ) from None
    if not rows:
        raise UserError(f"{path} is empty: the run has not finished a step that it logs.")
    return rows


def _time(rows: list[dict[str, float]]) -> str:
    """Says what the time of a step went into."""
    import numpy as np

    timed = [row for row in rows if "time/step" in row]
    if not timed:
        return ""
    steps = np.diff([0, *(row["step"] for row in timed)])

    def mean(name: str) -> float:
        return float(np.average([row[name] for row in timed], weights=steps))

    step = mean("time/step")
    shares = {part: mean(f"time/{part}") / step for part in clock.PARTS}
    listed = ", ".join(f"{share:.0%} {clock.PARTS[part]}" for part, share in shares.items())
    said = waits.verdict(shares["data"] * step, step, mean("clips_per_second"))
    return (
        f"<h2>Time</h2><p>A step took {1000 * step:,.0f} ms: {listed}. "
        f"The run was {'not input-bound' if said is None else said}.</p>"
    )


def _page(body: str, title: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}: a Zoetrope run</title><style>{_STYLE}</style>{body}</html>"
    )


def _heading(title: str, config: Any, rows: list[dict[str, float]]) -> str:
    steps, (first, last) = int(rows[-1]["step"]), (rows[n]["loss"] for n in (0, -1))
    if first is None:
        said = "was no finite number from the first step on"
    else:
        ended = f"to {last:.3f}" if last is not None else "on until it was no finite number"
        said = f"went from {first:.3f} (step {int(rows[0]['step'])}) {ended}"
    return (
        f"<h1>What {html.escape(title)} learned</h1>"
        f"<p>{steps:,} of {config.steps:,} steps on batches of {config.batch_size} clips from "
        f"<code>{html.escape(config.data.train)}</code>, seed {config.seed}. "
        f"The loss {said}.</p>"
    )


def _table(table: Table) -> str:
    heading, *body = table.cells
    lines = ["<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in heading) + "</tr>"]
    for trained, cells in zip(table.trained, body, strict=True):
        columns = "".join(f"<td>{html.escape(c)}</td>" for c in cells)
        lines.append(f'<tr class="{"trained" if trained else "other"}">{columns}</tr>')
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in table.remarks)
    return (
        f"<h2>{html.escape(table.title)}</h2><p>{html.escape(' '.join(table.about))}</p>"
        f"<div class='wide'><table>{''.join(lines)}</table></div>"
        + (f"<ul class='note'>{remarks}</ul>" if remarks else "")
    )


def _curves(rows: list[dict[str, float]]) -> str:
    """Draws what was logged over the steps."""
    from matplotlib.figure import Figure

    logged = dict.fromkeys(name for row in rows for name in row)  # not every step is validated
    drawn = [
        (title, names)
        for title, pattern in _CURVES
        if (names := [name for name in logged if re.search(pattern, name)])
    ]
    figure = Figure(figsize=(10, 3 * math.ceil(len(drawn) / 2)), layout="constrained")
    for place, (title, names) in enumerate(drawn):
        axis = figure.add_subplot(math.ceil(len(drawn) / 2), 2, place + 1)
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            label = name.removeprefix("collapse/")
            axis.plot(*zip(*points, strict=True), "." if len(points) == 1 else "-", label=label)
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
    data = pipeline.TrainData(config, method.views)
    if 0 < data.num_records < count:  # each once
        count = data.num_records
        with config.unlocked():
            config.batch_size = count
        data = pipeline.TrainData(config, method.views)
    batch = next(data.batches(0))
    raw = {name: batch[name] for name in method.views.spec()}
    inputs = jax.device_get(method.augment(raw, example_keys(config.seed, 0, count)))
    words = _words(method.encoders.values())
    blocks = [_example(raw, inputs, number, words) for number in range(count)]
    return (
        "<h2>Example clips and their views</h2><p>For each clip, above: what was cut from the "
        "record. Below: what the networks are given, augmented.</p>" + "".join(blocks)
    )


def _words(encoders: Iterable[Encoder]) -> Callable[[np.ndarray], list[str]] | None:
    """Returns what turns rows of token ids into sentences, where a network takes text."""
    from common.method import TextInput

    found = [e.inputs.words for e in encoders if isinstance(e.inputs, TextInput)]
    return found[0] if found else None


def _example(
    raw: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    number: int,
    words: Callable[[np.ndarray], list[str]] | None,
) -> str:
    """Draws one example; entries that augmentation leaves alone are shown once, tokens as words."""
    from matplotlib.figure import Figure

    shown = [
        (name, what, array[number])
        for what, entries in (("cut", raw), ("given", inputs))
        for name, array in sorted(entries.items(), key=lambda item: -item[1].ndim)
        if what == "cut" or name not in raw or not _same(raw[name], array)
    ]
    pictures = [
        entry
        for entry in shown
        if not _is_text(entry[2]) and entry[2].size > _FRAMES  # the others are single numbers
    ]
    figure = Figure(figsize=(10, 1.35 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), 1, squeeze=False)[:, 0]
    for axis, (name, what, array) in zip(axes, pictures, strict=True):
        _draw(axis, array)
        axis.set_ylabel(f"{name}\n{what}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    texts = "".join(
        _sentences(name, words(array if array.ndim == 2 else array[None]))
        for name, _, array in shown
        if words and _is_text(array)
    )
    return f"<figure>{_image(figure, f'clip {number + 1}')}{texts}</figure>"


def _is_text(array: np.ndarray) -> bool:
    """Whether an entry holds the token ids of one sentence, or of several."""
    return array.ndim in (1, 2) and array.dtype.name == "int32"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


def _sentences(name: str, sentences: Sequence[str]) -> str:
    times = {s: sentences.count(s) for s in sentences}  # a narration may stand for several
    lines = "".join(
        f"<li>{html.escape(s) or '<i>no known word</i>'}{f' (x {n})' if n > 1 else ''}</li>"
        for s, n in times.items()
    )
    about = f"{html.escape(name)}, as far as its words are known:"
    return f"<figcaption>{about}<ol>{lines}</ol></figcaption>"


def _draw(axis: Any, array: np.ndarray) -> None:
    """Draws a clip (T, H, W, C) as a strip, a spectrogram (frames, bins) or a waveform (N,)."""
    import numpy as np

    if array.ndim == 4:
        chosen = np.linspace(0, len(array) - 1, min(_FRAMES, len(array))).astype(int)
        frames = array[chosen]
        if frames.shape[-1] == 2:  # optical flow: the third colour stays neutral
            frames = np.concatenate([frames, np.full_like(frames[..., :1], frames.max() / 2)], -1)
        if frames.dtype != np.uint8:
            low = min(0.0, float(frames.min()))
            frames = np.clip((frames - low) / max(1.0 - low, 1e-6), 0, 1)
        white = 255 if frames.dtype == np.uint8 else 1.0
        gap = -(-frames.shape[2] // 32)  # tells one frame from the next
        strip = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=white)
        axis.imshow(np.concatenate(list(strip), axis=1)[:, :-gap], aspect="equal")
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
