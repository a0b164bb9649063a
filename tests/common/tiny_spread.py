"""A MIL-NCE that fits in a test, whose encoders compare by cosine and may take whole videos."""

from __future__ import annotations

import dataclasses

import mil_nce.method
from common.method import COSINE, VideoInput

# Rates that would be noticed if they counted.
INPUTS = VideoInput(4, frame_rate=0.0, stride=0, size=32, segments=True, resize=40)


def install(monkeypatch, segments=True):
    """Gives every MIL-NCE such encoders until the patch is undone."""
    original = mil_nce.method.MilNce._encoders

    def changed(encoder):
        if segments and isinstance(encoder.inputs, VideoInput):
            encoder = dataclasses.replace(encoder, inputs=INPUTS)
        return dataclasses.replace(encoder, similarity=COSINE) if encoder.space else encoder

    def encoders(method, shapes):
        return {name: changed(encoder) for name, encoder in original(method, shapes).items()}

    monkeypatch.setattr(mil_nce.method.MilNce, "_encoders", encoders)
