"""Writes annotation files as data sets publish them, and says what was read of them."""

import csv
import json
import pickle


def put(path, value):
    """Writes text, json (by the ending) or a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value))
    elif path.suffix == ".json":
        path.write_text(json.dumps(value))
    else:
        path.write_text(value)
    return path


def touch(root, *names):
    for name in names:
        put(root / name, "")


def put_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def told(source):
    """By id, the texts of an item."""
    return {item.id: [text for text, _, _ in item.captions] for item in source.items}


def names(source):
    return {item.id: item.name for item in source.items}
