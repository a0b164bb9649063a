"""Animated emoji as real, captioned clips: fetched, split and rendered to small mp4 files.

The drawings are Microsoft's Fluent emoji, animated, as packed by LobeHub (MIT licence); names and
groups come from emojibase (MIT licence). Both are npm packages, fetched with the ordinary npm
client into a cache folder and checked against their SHA-256. Nothing of them is stored with this
code.

An emoji of the packs is a 256 px transparent animation of 2 to 4 s at 24 frames/s that loops. Many
come once per skin tone, and as man, woman and person; `family_of` says which belong together.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fractions
import hashlib
import io
import json
import math
import multiprocessing
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence

import av
import numpy as np
import tqdm
from PIL import Image

from common.errors import UserError

FRAME_RATE = 24  # every frame of the packs lasts 42 ms
SIZE = 128  # pixels of the rendered clips
SCALES = (0.7, 1.0)  # least and largest share of the frame's side that an emoji takes
BACKGROUND = (128, 128, 128)
RENDERING = 2  # counts changes of how clips are drawn: other clips go to another folder
TONES = range(6)  # 0: none (yellow), 1 to 5: light to dark
HELD_OUT_TONE = 5
HELD_OUT_SHARE = 0.2  # of the families of every group


class Unavailable(Exception):
    """The data cannot be fetched from here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One pinned npm package."""

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str = "MIT"

    @property
    def file_name(self) -> str:
        """The name ``npm pack`` gives the package's archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    7,
)
PACKS = tuple(
    Package(f"@lobehub/fluent-emoji-anim-{number}", "1.0.0", sha256, megabytes)
    for number, sha256, megabytes in (
        (1, "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea", 165),
        (2, "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0", 182),
        (3, "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43", 197),
        (4, "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3", 186),
    )
)


@dataclasses.dataclass(frozen=True)
class Emoji:
    """What is known of one emoji without looking at it."""

    code: str  # lower-case code points joined by "-", without the variation selector
    label: str  # "waving hand: dark skin tone"
    concept: str  # the label without the skin tone
    group: str  # one of the groups of emojibase: "people & body"
    tone: int  # one of `TONES`


def cache_folder() -> pathlib.Path:
    """Returns where downloads and rendered clips are kept, by the XDG convention."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "zoetrope" / "real_data"


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(package: Package, folder: pathlib.Path) -> pathlib.Path:
    """Returns the checked archive of ``package`` in ``folder``, downloading it where missing.

    Raises:
        Unavailable: npm is not installed or cannot get the package.
        UserError: what npm delivered is not the pinned archive.
    """
    target = folder / package.file_name
    if target.exists() and _sha256(target) == package.sha256:
        return target
    if not shutil.which("npm"):
        raise Unavailable("npm is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {package.name} {package.version} ({package.megabytes} MB) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as scratch:
        result = subprocess.run(
            ["npm", "pack", f"{package.name}@{package.version}", "--silent"],
            cwd=scratch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        made = pathlib.Path(scratch) / package.file_name
        if result.returncode or not made.exists():
            reason = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
            raise Unavailable(f"npm cannot get {package.name}@{package.version}: {reason[-1]}")
        if (found := _sha256(made)) != package.sha256:
            raise UserError(
                f"{package.name}@{package.version} has SHA-256 {found}, not the pinned "
                f"{package.sha256}: the registry serves another file. Nothing of it was used."
            )
        made.replace(target)
    return target


def _code(text: str) -> str:
    return "-".join(part for part in text.lower().split("-") if part != "fe0f")


def catalogue(archive: pathlib.Path) -> dict[str, Emoji]:
    """Reads names and groups from the archive of emojibase; maps code to emoji."""
    with tarfile.open(archive) as tar:
        entries = json.load(tar.extractfile("package/en/data.json"))
        messages = json.load(tar.extractfile("package/en/messages.json"))
    return parse_catalogue(entries, messages)


def parse_catalogue(entries: Sequence[dict], messages: dict) -> dict[str, Emoji]:
    """Maps code to `Emoji` from the two parsed files of emojibase (``data``, ``messages``).

    Entries without a group (regional letters) and skins of two people with unlike tones are left
    out: the packs hold neither.
    """
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    found = {}
    for entry in entries:
        if "group" not in entry:
            continue
        for skin in (entry | {"tone": 0}, *entry.get("skins", ())):
            if not isinstance(skin["tone"], int):
                continue
            code = _code(skin["hexcode"])
            found[code] = Emoji(
                code, skin["label"], entry["label"], groups[entry["group"]], skin["tone"]
            )
    return found


# Words that tell the variants of one idea apart; what is left of the label names the idea.
_PEOPLE = re.compile(r"\b(man|woman|men|women|person|people|boy|girl|child|older|old)\b")
# Ideas that are drawn alike under unlike names: the first pattern found in what is left wins.
_ALIKE = (
    ("portrait", r"^$|^:|^baby$|^with (skullcap|headscarf)$"),
    ("family", r"^family\b"),
    ("couple", r"^couple\b|^kiss\b|holding hands"),
    ("claus", r"\bclaus$"),
    ("royalty", r"^prince(ss)?$"),
    ("merfolk", r"^mer(maid|man|person)$"),
    ("feeding", r"feed"),
    ("cycling", r"biking$"),
    ("pointing", r"index pointing"),
    ("fist", r"\bfist$"),
    ("thumb", r"^thumbs"),
    ("flat hand", r"^raised (back of )?hand$|^hand with fingers|^vulcan|^waving hand$"),
    ("mechanical limb", r"^mechanical (arm|leg)$"),
    ("bust", r"\bbusts? in silhouette"),
    ("ear", r"^ear\b"),
    ("coloured heart", r"^(blue|green|yellow|purple|black|white|brown|orange|red) heart$"),
    ("cat smiley", r"\bcat\b.*(smil|tears|eyes)|^(grinning|kissing|crying|weary) cat$|^cat with"),
    ("monkey smiley", r"-no-evil monkey$"),
    ("clock", r"o.clock$|-thirty$"),
    ("moon", r"\bmoon\b"),
    ("dog", r"\bdog\b"),
    ("chick", r"\bchick\b"),
    ("bear", r"^(polar )?bear$"),
    ("camel", r"\bcamel$"),
    ("whale", r"\bwhale$"),
    ("car", r"^(oncoming )?(police car|taxi|automobile)$|^sport utility"),
    ("airplane", r"\bairplane\b"),
    ("weather", r"\bclouds?\b|^fog$"),
    ("umbrella", r"\bumbrella\b"),
    ("snowman", r"^snowman"),
    ("hourglass", r"^hourglass"),
    ("beer", r"\bbeer\b"),
    ("plain flag", r"^(white|black|pirate) flag$"),
)


def family_of(emoji: Emoji) -> str:
    """Names the family of an emoji: its group and the idea that its variants share.

    Variants by skin tone, hair, age and gender, and drawings that differ in colour, direction or
    hand of a clock alone, are one family. A split that keeps families whole does not show a test
    clip's twin in training.
    """
    idea = " ".join(_PEOPLE.sub("", emoji.concept.lower()).split()).removesuffix(" face")
    for name, pattern in _ALIKE:
        if re.search(pattern, idea):
            idea = name
            break
    return f"{emoji.group}/{idea}"


def held_out_families(emojis: Sequence[Emoji]) -> set[str]:
    """Chooses `HELD_OUT_SHARE` of the families of every group, by the hash of their name.

    A group's only family is kept for training.
    """
    by_group: dict[str, set[str]] = {}
    for emoji in emojis:
        by_group.setdefault(emoji.group, set()).add(family_of(emoji))
    held: set[str] = set()
    for families in by_group.values():
        ordered = sorted(families, key=lambda name: hashlib.sha256(name.encode()).digest())
        count = min(math.ceil(HELD_OUT_SHARE * len(ordered)), len(ordered) - 1)
        held.update(ordered[:count])
    return held


def splits(emojis: Sequence[Emoji]) -> dict[str, list[Emoji]]:
    """Splits the clips for training without labels and for two probes.

    * ``concept_train``, ``concept_test``: the concepts that come in all six skin tones; tone 5 is
      for test, so the test clip is an unseen variant of a seen concept.
    * ``group_train``, ``group_test``: one clip (tone 0) per concept; the families of the test clips
      are held out whole, so nothing drawn alike is in training. One clip per concept, or people
      in six tones would outnumber all else.
    * ``pretrain``: every clip that is in no held-out family and not the held-out tone of the
      concepts above. No test clip, and no relative of a group test clip, is trained on.
    """
    tones: dict[str, set[int]] = {}
    for emoji in emojis:
        tones.setdefault(emoji.concept, set()).add(emoji.tone)
    toned = {concept for concept, found in tones.items() if found == set(TONES)}
    held = held_out_families(emojis)
    result: dict[str, list[Emoji]] = {
        name: []
        for name in ("pretrain", "concept_train", "concept_test", "group_train", "group_test")
    }
    for emoji in sorted(emojis, key=lambda emoji: emoji.code):
        unseen_family = family_of(emoji) in held
        if emoji.concept in toned:
            is_test = emoji.tone == HELD_OUT_TONE
            result["concept_test" if is_test else "concept_train"].append(emoji)
        else:
            is_test = False
        if emoji.tone == 0:
            result["group_test" if unseen_family else "group_train"].append(emoji)
        if not unseen_family and not is_test:
            result["pretrain"].append(emoji)
    return result


def moving(archive: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Yields (code, WebP bytes) of the emoji in a pack that have more than one frame."""
    return ((code, webp) for code, webp, frames in _members(archive) if frames > 1)


def still(archive: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Yields (code, WebP bytes) of the emoji in a pack that do not move."""
    return ((code, webp) for code, webp, frames in _members(archive) if frames == 1)


def _members(archive: pathlib.Path) -> Iterator[tuple[str, bytes, int]]:
    """Yields code, WebP bytes and number of frames of every emoji in a pack."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = pathlib.PurePosixPath(member.name)
            if not member.isfile() or path.suffix != ".webp":
                continue
            webp = tar.extractfile(member).read()
            with Image.open(io.BytesIO(webp)) as image:  # reads the header alone
                yield _code(path.stem), webp, getattr(image, "n_frames", 1)


def compose(webp: bytes, code: str, size: int = SIZE) -> np.ndarray:
    """Draws an animated WebP as an opaque clip, uint8 (frames, size, size, 3).

    The packs draw every emoji centred, at one scale, from the same first frame, which real video
    does not do and which would let raw pixels name it. Here each clip gets its own place, scale and
    starting frame (the animations loop), by the hash of ``code``: the same on every machine. The
    background is one grey for all: one of its own would name the clip to both views of a method
    that compares views, and be learned instead of the emoji.
    """
    seed = int.from_bytes(hashlib.sha256(code.encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    side = round(size * rng.uniform(*SCALES))
    left, top = rng.integers(0, size - side + 1, 2).tolist()
    frames = []
    with Image.open(io.BytesIO(webp)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            emoji = image.convert("RGBA").resize((side, side), Image.Resampling.BOX)
            canvas = Image.new("RGB", (size, size), BACKGROUND)
            canvas.paste(emoji, (left, top), emoji)
            frames.append(np.asarray(canvas))
    return np.roll(np.stack(frames), int(rng.integers(len(frames))), axis=0)


def _write_mp4(path: pathlib.Path, frames_THWC: np.ndarray) -> None:
    """Writes an h264 mp4 at `FRAME_RATE`; it appears under its name only when whole."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fractions.Fraction(FRAME_RATE))
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "17", "preset": "veryfast", "threads": "1"}
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def _render_one(webp: bytes, code: str, path: pathlib.Path) -> None:
    _write_mp4(path, compose(webp, code))


def render(archive: pathlib.Path, folder: pathlib.Path, workers: int) -> list[str]:
    """Renders the moving emoji of a pack to ``folder/CODE.mp4`` and returns their codes.

    Clips that are there already are kept, so a stopped rendering continues.
    """
    folder.mkdir(parents=True, exist_ok=True)
    codes, waiting = [], set()
    spawn = multiprocessing.get_context("spawn")  # forks of a process with threads can hang
    with (
        concurrent.futures.ProcessPoolExecutor(workers, spawn) as pool,
        tqdm.tqdm(desc=f"Rendering {archive.name}", unit=" clips", mininterval=2) as progress,
    ):
        for code, webp in moving(archive):
            codes.append(code)
            progress.update()
            path = folder / f"{code}.mp4"
            if path.exists():
                continue
            if len(waiting) >= 4 * workers:  # a pack need not fit the memory
                done, waiting = concurrent.futures.wait(
                    waiting, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    future.result()
            waiting.add(pool.submit(_render_one, webp, code, path))
        for future in waiting:
            future.result()
    return codes


def rendered(packs: int, workers: int) -> tuple[dict[str, list[Emoji]], pathlib.Path]:
    """Fetches and renders the first packs; returns their `splits` and the folder of CODE.mp4.

    Says what is used, under which licence.

    Raises:
        Unavailable: the packages cannot be fetched from here.
        UserError: a package is not the pinned one.
    """
    cache = cache_folder()
    used = (NAMES, *PACKS[:packs])
    print(f"Using, from the npm registry (kept in {cache}):")
    for package in used:
        print(f"  {package.name} {package.version}, {package.licence} licence")
    names, *archives = [fetch(package, cache / "packages") for package in used]
    videos = rendering_folder() / "videos"
    codes = [code for archive in archives for code in render(archive, videos, workers)]
    emojis = catalogue(names)
    return splits([emojis[code] for code in codes]), videos


def stills(packs: int, moving_emojis: Sequence[Emoji]) -> tuple[list[Emoji], pathlib.Path]:
    """Draws the emoji of the first packs that do not move; returns them and the folder of CODE.png.

    Images to be learned from beside the "pretrain" clips of `splits`: those of held-out families
    and those whose moving twin is a test clip are left out.

    Args:
        packs: fetched already, by `rendered`.
        moving_emojis: all moving emoji of these packs, whose families are held out.
    """
    names, *archives = [cache_folder() / "packages" / p.file_name for p in (NAMES, *PACKS[:packs])]
    emojis, held = catalogue(names), held_out_families(moving_emojis)
    hidden = {emoji.concept for emoji in moving_emojis if emoji.tone == HELD_OUT_TONE}
    folder, drawn = rendering_folder() / "stills", []
    folder.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        for code, webp in still(archive):
            emoji = emojis.get(code)  # a few flags are named in another way
            if emoji is None or family_of(emoji) in held:
                continue
            if emoji.tone == HELD_OUT_TONE and emoji.concept in hidden:
                continue
            path = folder / f"{code}.png"
            if not path.exists():
                partial = path.with_suffix(f".{os.getpid()}.partial")
                Image.fromarray(compose(webp, code)[0]).save(partial, "PNG")
                partial.replace(path)
            drawn.append(emoji)
    return drawn, folder


def rendering_folder() -> pathlib.Path:
    """Returns where the clips of this rendering, and what is made of them, are kept."""
    return cache_folder() / "emoji" / f"rendering_{RENDERING}"


def write_table(
    path: pathlib.Path, emojis: Sequence[Emoji], videos: pathlib.Path, suffix: str = ".mp4"
) -> None:
    """Writes a jsonl table for ``common.ingest`` with the columns "group" and "concept"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {
            "path": os.path.relpath(videos / f"{emoji.code}{suffix}", path.parent),
            "id": emoji.code,
            "group": emoji.group,
            "concept": emoji.concept,
            "captions": [{"text": emoji.label}],
        }
        for emoji in emojis
    )
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    partial.replace(path)
