"""Words about the playground: clean captions, and narrations as speech recognition gives them."""

from __future__ import annotations

import dataclasses

import numpy as np

from common.data.playground_motion import ACTIONS, KINDS, Scene

_NOUNS = {
    "ball": ("ball", "disc"),
    "box": ("box", "square", "block"),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus sign"),
    "heart": ("heart",),
    "gear": ("gear", "cog wheel"),
}

# Third person, and the form after "see it"; "{other}" is the object that stands by.
_VERBS = {
    "rise": (("rises", "goes up", "climbs"), ("rising", "going up", "lifting off")),
    "fall": (("falls", "drops down", "comes down"), ("falling", "dropping", "coming down")),
    "grow": (("grows", "gets bigger", "swells up"), ("growing", "getting bigger", "inflating")),
    "shrink": (
        ("shrinks", "gets smaller", "deflates"),
        ("shrinking", "getting smaller", "deflating"),
    ),
    "open": (("opens", "splits apart", "opens up"), ("opening", "coming apart", "opening up")),
    "close": (("closes", "snaps together", "shuts"), ("closing", "going together", "shutting")),
    "clockwise": (
        ("turns clockwise", "spins to the right", "winds up"),
        ("turning clockwise", "winding up"),
    ),
    "counter-clockwise": (
        ("turns counter-clockwise", "spins to the left", "unwinds"),
        ("turning counter-clockwise", "unwinding"),
    ),
    "right": (("slides to the right", "moves right"), ("sliding right", "moving to the right")),
    "left": (("slides to the left", "moves left"), ("sliding left", "moving to the left")),
    "approach": (
        ("comes up to the {other}", "approaches the {other}", "moves towards the {other}"),
        ("approaching the {other}", "getting close to the {other}"),
    ),
    "leave": (
        ("moves away from the {other}", "leaves the {other}", "backs off from the {other}"),
        ("leaving the {other}", "going away from the {other}"),
    ),
    "hit": (
        ("hits the {other}", "bounces off the {other}", "bumps into the {other}"),
        ("hitting the {other}", "bouncing off the {other}"),
    ),
    "miss": (
        ("misses the {other}", "passes by the {other}", "flies past the {other}"),
        ("missing the {other}", "passing the {other}"),
    ),
}

_OPENINGS = (
    "so now the {noun} {does}",
    "okay and here you can see the {noun} {doing}",
    "watch how the {material} {noun} {does}",
    "and then the {size} {noun} {does} {speed}",
    "alright the {noun} is {doing} right there",
    "what i like is when the {size} {noun} {does}",
    "{doing} like this and that is the {noun}",
    "um there it goes the {noun} {does}",
    "you hear that it is the {material} one {doing}",
    "look it {does}",
)

_CHATTER = (
    "so before we start do not forget to like and subscribe",
    "i bought these at the market last week they were really cheap",
    "um anyway where was i",
    "you can find the link in the description below",
    "my neighbor came by yesterday and she said the same thing",
    "if you have any questions just leave me a comment",
    "it took me a while to get the light right in here",
    "okay let me just move the camera a little bit",
    "this is the part that everybody asks me about",
    "and by the way the weather has been great this week",
    "i will show you another one in a minute",
    "so yeah that is pretty much what we did last time",
)


@dataclasses.dataclass(frozen=True)
class Caption:
    """Words with their time, in seconds; ``timing`` is how they relate to what is seen.

    ``timing`` is "clean", "aligned", "early", "late" or "other" (about something else).
    """

    text: str
    start: float
    end: float
    timing: str


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a clean sentence about a scene, in lower case, worded at random."""
    words = _words(scene, rng)
    said = {"size": 0.5, "material": 0.5, "noun": 1.0, "does": 1.0, "speed": 0.4}
    return " ".join(["a", *(words[part] for part, share in said.items() if rng.random() < share)])


def narrate(
    scenes: list[tuple[float, Scene]], duration: float, rng: np.random.Generator
) -> list[Caption]:
    """Returns the narration of a video of several scenes, given with their start in seconds.

    Half of the sentences are said while their event happens; of the others a third comes 3 to 8
    seconds early, a third as much late, and a third is about something else. All lie inside
    0..``duration``, in the order of their starts.
    """
    said = []
    for begin, scene in scenes:
        first, last = (begin + seconds for seconds in scene.span())
        length = rng.uniform(1.6, 3.2)
        start = (first + last - length) / 2 + rng.uniform(-0.5, 0.5)
        timing = "aligned"
        if rng.random() < 0.5:
            timing = ("early", "late", "other")[rng.integers(3)]
        shift = rng.uniform(3.0, 8.0)
        room = {"early": start - shift >= 0, "late": start + shift + length <= duration}
        if not room.get(timing, True):  # at the ends of the video only one way is left, or none
            timing = next((way for way, fits in room.items() if fits), "other")
        start += {"early": -shift, "late": shift}.get(timing, 0.0)
        text = _unrelated(scenes, rng) if timing == "other" else _sentence(scene, rng)
        start = float(np.clip(start, 0.0, duration - length))
        said.append(Caption(text, round(start, 3), round(start + length, 3), timing))
    return sorted(said, key=lambda line: line.start)


def _words(scene: Scene, rng: np.random.Generator) -> dict[str, str]:
    def noun(kind: str) -> str:
        return str(rng.choice(_NOUNS[kind]))

    does, doing = (str(rng.choice(forms)) for forms in _VERBS[scene.action])
    other = noun(scene.partner_look.kind)
    radius = float(scene.state(np.array([scene.duration / 2]))["radius"][0])
    first, last = scene.span()
    return {
        "noun": noun(scene.look.kind),
        "does": does.format(other=other),
        "doing": doing.format(other=other),
        "material": scene.material if scene.material != "wood" else "wooden",
        "size": str(rng.choice(("small", "little") if radius < 0.3 else ("big", "large"))),
        "speed": str(rng.choice(("slowly", "gently") if last - first > 2 else ("fast", "quickly"))),
    }


def _sentence(scene: Scene, rng: np.random.Generator) -> str:
    return str(rng.choice(_OPENINGS)).format(**_words(scene, rng))


def _unrelated(scenes: list[tuple[float, Scene]], rng: np.random.Generator) -> str:
    """Chatter, or a sentence about an object and an action that the video does not show."""
    if rng.random() < 0.6:
        return str(rng.choice(_CHATTER))
    shown = {scene.action for _, scene in scenes}, {scene.look.kind for _, scene in scenes}
    action = rng.choice([name for name in ACTIONS if name not in shown[0]])
    kinds = [name for name in KINDS if name not in shown[1]] or list(KINDS)
    template = scenes[0][1]
    look = dataclasses.replace(template.look, kind=str(rng.choice(kinds)))
    return _sentence(dataclasses.replace(template, action=str(action), look=look), rng)
