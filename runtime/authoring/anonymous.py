"""Keep names of patients' scans at home: take them out of what travels, and find those that are still there.

A full bundle may name the images that it was trained and tested on, for whoever made it. A slim, packed or signed
bundle travels, so there an image is known by the first digits of its SHA-256, and a command line has no paths.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse
from mri_edge.bundles.split import SPLIT, Split, short
from mri_edge.errors import BundleError, ManifestError
from mri_edge.inference.replay import is_golden
from mri_edge.scans.readers import suffixes

from .keras_file import KERAS

_TEXTS = (".json", ".md", ".html", ".txt", ".csv")
_PICTURE = re.compile(
    r"[^\s\"'<>|/\\]+\.(?:" + "|".join(suffix[1:] for suffix in suffixes()) + r"|dcm|nii|nii\.gz)\b", re.IGNORECASE
)
_UNNAMED = re.compile(r"[0-9a-f]{16}([0-9a-f]{48})?|image \d+")  # a hash, short or whole, or a number
_PATH = "PATH"


def aliases(bundle: Bundle) -> dict[str, str]:
    """By the name of each image that the bundle's records know: the first digits of its SHA-256."""
    listed = {entry.file: entry for entry in bundle.manifest.documents}
    known: dict[str, str] = {}
    if SPLIT in listed:
        known = {image.file: short(image.sha256) for image in Split.from_json(bundle.read(listed[SPLIT])).images}
    if "parity.json" in listed:
        try:
            images = parse(bundle.read(listed["parity.json"]), "parity.json").get("images", [])
            known |= {str(image["file"]): short(str(image["sha256"]["file"])) for image in images}
        except (TypeError, KeyError, AttributeError) as error:
            raise ManifestError(f"{bundle.folder}: parity.json is not what export writes ({error!r})") from error
    return known


def without_names(content: bytes, known: Mapping[str, str], origin: str) -> str:
    """JSON text in which every image that is named is known by its alias, or by a number if it has none.

    The text is otherwise as it was, for the records are compared byte by byte.
    """
    replaced: dict[str, str] = {}

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, dict):
            return {alias(key): named(item) if key == "file" else clean(item) for key, item in value.items()}
        return alias(value) if isinstance(value, str) else value

    def alias(value: str) -> str:
        return replaced.setdefault(value, known[value]) if value in known else value

    def named(value: Any) -> Any:
        if not isinstance(value, str) or value in known or value == KERAS or _UNNAMED.fullmatch(value):
            return clean(value)
        return replaced.setdefault(value, f"image {sum(name.startswith('image ') for name in replaced.values()) + 1}")

    wanted = clean(parse(content, origin))
    text = content.decode()
    for name, short_name in replaced.items():
        for ascii_only in (True, False):
            text = text.replace(json.dumps(name, ensure_ascii=ascii_only), json.dumps(short_name))
    # Where a name is written in another way, with escapes that nobody needs, the text is written anew.
    return text if parse(text, origin) == wanted else json.dumps(wanted, indent=1) + "\n"


def without_paths(command: str) -> str:
    """A recorded command line whose paths are replaced by ``PATH``, also in ``--option=PATH``.

    Program and command stay. ``creation`` records no paths any more: this is for bundles that were made before.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # whatever that is, it is no command line
        return ""

    def is_path(word: str) -> bool:
        return bool(set(word) & set("/\\~"))

    def clean(word: str) -> str:
        option, equals, value = word.partition("=")
        if word.startswith("-") and equals:
            return f"{option}={_PATH}" if is_path(value) else word
        return _PATH if is_path(word) else word

    return shlex.join([*words[:2], *map(clean, words[2:])])


def check_anonymous(bundle: Bundle) -> None:
    """Raise BundleError if a bundle that is to travel names scans, other than those of its golden record."""
    listed = {entry.file for entry in bundle.entries()}
    own = {PurePosixPath(file).name for file in listed}
    for entry in bundle.manifest.documents:
        found = SPLIT if entry.file == SPLIT else None
        if entry.file.endswith(_TEXTS) and not is_golden(entry.file):
            text = bundle.read(entry)
            names = set(_PICTURE.findall(text.decode(errors="replace"))) - own
            found = found or next(iter(sorted(names)), None)
            if entry.file in ("metrics.json", "parity.json"):
                found = found or _named_file(parse(text, entry.file), listed)
        if found:
            raise BundleError(
                f"{bundle.folder}: {entry.file} names scans, and this bundle is to travel",
                "Make a copy without them: 'mri-edge bundle slim BUNDLE --artefact FILE --out DIR'",
            )


def _named_file(value: Any, listed: set[str]) -> str | None:
    if isinstance(value, dict):
        file = value.get("file")
        if isinstance(file, str) and not (_UNNAMED.fullmatch(file) or file in listed or file == KERAS):
            return file
        value = list(value.values())
    items = value if isinstance(value, list) else []
    return next((found for item in items if (found := _named_file(item, listed))), None)
