"""The data set's card: what is in it, what is missing, and how it looks."""

from __future__ import annotations

import collections
import functools
import importlib.resources
import io
import json
import logging
import os
import pathlib
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.data import convert, records, shards, writer
from common.errors import UserError

CARD = "dataset.json"
REJECTS = "rejects.jsonl"
CONTACT_SHEET = "contact_sheet.jpg"

_COLUMNS, _STRIPS, _FRAMES = 2, 16, 4  # clips side by side, clips per split, frames per clip
_HEIGHT, _STRIP_WIDTH, _WAVE, _TEXT = 96, 690, 28, 16  # pixels

_log = logging.getLogger(__name__)


def write_card(folder: str | os.PathLike) -> dict[str, Any]:
    """Writes ``dataset.json``, ``rejects.jsonl`` and ``contact_sheet.jpg``; returns the card."""
    folder = pathlib.Path(folder)
    entries = writer.journal_entries(folder)
    card = {
        "splits": {
            split: {"settings": writer.read_plan(folder, split)} | summarise(lines)
            for split, lines in entries.items()
        },
        "labels": len(writer.read_labels(folder)),
    }
    rejects = [
        json.dumps({"split": split} | {key: line[key] for key in ("id", "path", "reason")})
        for split, lines in entries.items()
        for line in lines
        if "reason" in line
    ]
    writer.write_whole(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    writer.write_whole(folder / REJECTS, "".join(line + "\n" for line in rejects))
    strips = [
        (f"{split}  {record_set.name(number)}", record_set.read(number))
        for split in entries
        for record_set in [_open_or_none(folder / split)]
        if record_set is not None
        for number in evenly(len(record_set), _STRIPS)
    ]
    if strips:
        sheet = contact_sheet([(name, records.deserialize(data)) for name, data in strips])
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=85)
        writer.write_whole(folder / CONTACT_SHEET, buffer.getvalue())
    return card


def _open_or_none(folder: pathlib.Path) -> shards.RecordSet | None:
    """Opens a split; None where it has no records, or another run has not finished it."""
    try:
        record_set = shards.RecordSet(shards.find_shards(folder))
    except UserError as error:
        _log.warning("not in %s: %s", CONTACT_SHEET, error)
        return None
    return record_set if len(record_set) else None


def evenly(number: int, wanted: int) -> list[int]:
    """Returns at most `wanted` indices spread evenly over ``range(number)``."""
    return sorted({round(i) for i in np.linspace(0, max(number - 1, 0), min(number, wanted))})


def summarise(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns counts and distributions over the facts of clips (see `convert.facts`).

    Entries with a "reason" are rejects; the others are clips.
    """
    clips = [line for line in lines if "reason" not in line]
    rejects = [line["reason"] for line in lines if "reason" in line]
    sounding = [line for line in clips if "samples" in line]
    levels = [line["rms_dbfs"] for line in sounding if line["rms_dbfs"] is not None]
    labels = collections.Counter(name for line in clips for name in line["labels"])
    return {
        "clips": len(clips),
        "rejected": len(rejects),
        "reject_reasons": _counts(_general(reason) for reason in rejects),
        "hours": round(sum(line.get("seconds", 0.0) for line in clips) / 3600, 4),
        "gigabytes": round(sum(line["bytes"] for line in clips) / 1e9, 4),
        "seconds": _distribution(line["seconds"] for line in clips if "seconds" in line),
        "frames": _distribution(line["frames"] for line in clips if line["frames"]),
        "frame_rates": _counts(f"{line['frame_rate']:g}" for line in clips if "frame_rate" in line),
        "sizes": _counts("x".join(map(str, line["size"])) for line in clips if line.get("size")),
        "without_frames": sum(not line["frames"] for line in clips),
        "sound": {
            "clips": len(sounding),
            "missing": len(clips) - len(sounding),
            "undecodable": sum("sound_failure" in line for line in clips),
            "silent": sum(is_silent(line["rms_dbfs"]) for line in sounding),
            "rates": _counts(str(line["audio_rate"]) for line in sounding if "audio_rate" in line),
            "rms_dbfs": _distribution(levels),
        },
        "captions": sum(line["captions"] for line in clips),
        "captions_outside": sum(line.get("captions_outside", 0) for line in clips),
        "labelled": sum(bool(line["labels"]) for line in clips),
        "clips_by_label": dict(sorted(labels.items())),
    }


def is_silent(rms_dbfs: float | None) -> bool:
    """Says whether a sound level is no sound at all."""
    return rms_dbfs is None or rms_dbfs < convert.SILENCE_DBFS


def _general(reason: str) -> str:
    """Drops names and numbers, so that like reasons are counted together."""
    named = re.sub(r"'[^']*'", "'...'", re.sub(r"\([^)]*\)", "", reason))
    return re.sub(r"\d+(\.\d+)?", "#", named).strip()


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(collections.Counter(values).most_common(20))


def _distribution(values: Iterable[float]) -> dict[str, float] | None:
    values = sorted(values)
    if not values:
        return None
    middle = statistics.median(values)
    return {"min": _round(values[0]), "median": _round(middle), "max": _round(values[-1])}


def _round(value: float) -> float:
    return round(float(value), 3)


def contact_sheet(clips: Sequence[tuple[str, records.Clip]]) -> Image.Image:
    """Returns one picture of all clips: frames, waveform, name, duration, level and labels."""
    height = _TEXT * 2 + _HEIGHT + _WAVE + 8
    rows = -(-len(clips) // _COLUMNS)
    columns = min(_COLUMNS, len(clips))
    sheet = Image.new("RGB", (columns * (_STRIP_WIDTH + 8) + 8, rows * height + 8), "white")
    for number, (name, clip) in enumerate(clips):
        row, column = divmod(number, _COLUMNS)
        sheet.paste(_strip(name, clip), (8 + column * (_STRIP_WIDTH + 8), 8 + row * height))
    return sheet


def _strip(name: str, clip: records.Clip) -> Image.Image:
    strip = Image.new("RGB", (_STRIP_WIDTH, _TEXT * 2 + _HEIGHT + _WAVE), "white")
    draw = ImageDraw.Draw(strip)
    known = convert.facts(clip)
    words = [f"{known['seconds']:.2f} s" if "seconds" in known else ""]
    words.append(f"{len(clip.frames_jpeg)} frames")
    words.append(f"{clip.frame_rate:g}/s" if clip.frame_rate else "")
    if clip.waveform is None:
        words.append("no sound")
    else:
        level = known["rms_dbfs"]
        words.append("silence" if level is None else f"{level:.1f} dBFS")
    words += [f"[{label}]" for label in known["labels"]]
    words += [f'"{text}"' for text, _, _ in clip.captions[:1]]
    font = _font()
    draw.text((0, 0), _end_of(clip.id or name, font), fill="black", font=font)
    draw.text((0, _TEXT), "  ".join(filter(None, words)), fill="dimgray", font=font)
    left = 0
    for index in evenly(len(clip.frames_jpeg), _FRAMES):
        try:
            with Image.open(io.BytesIO(clip.frames_jpeg[index])) as frame:
                frame = frame.convert("RGB")
        except OSError:
            draw.text((left, _TEXT * 2), f"frame {index} is no picture", fill="red")
            continue
        scale = min(_HEIGHT / frame.height, (_STRIP_WIDTH // _FRAMES - 2) / frame.width)
        size = [max(1, round(side * scale)) for side in frame.size]
        strip.paste(frame.resize(size), (left, _TEXT * 2))
        left += size[0] + 2
    if clip.waveform is not None and len(clip.waveform):
        _draw_waveform(draw, clip.waveform, _TEXT * 2 + _HEIGHT + _WAVE // 2)
    return strip


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """Returns the font that comes with Matplotlib, which knows more letters than Pillow's own."""
    folder = importlib.resources.files("matplotlib") / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), 10)


def _end_of(name: str, font: ImageFont.FreeTypeFont) -> str:
    """Returns a name, or as much of its end as there is room for: there its file is."""
    shown = name
    while font.getlength(shown) > _STRIP_WIDTH:
        shown = "…" + shown[2:]
    return shown


def _draw_waveform(draw: ImageDraw.ImageDraw, waveform_N: np.ndarray, middle: int) -> None:
    for x, part in enumerate(np.array_split(waveform_N, _STRIP_WIDTH)):
        if len(part):
            peak = int(round(min(1.0, float(np.abs(part).max())) * (_WAVE // 2 - 1)))
            draw.line((x, middle - peak, x, middle + peak), fill="steelblue")
