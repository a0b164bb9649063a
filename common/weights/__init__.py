"""Trained weights: published layouts, safe reading, and bundles.

from common.weights import load_bundle

bundle = load_bundle("runs/demo/bundle")
features = bundle.embed_videos(["a.mp4", "b.webm"])  # float32 (2, D)
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports JAX and the models only for those who ask for a bundle."""
    if name == "load_bundle":
        from common.weights.bundle import load_bundle

        return load_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
