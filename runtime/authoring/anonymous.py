"""Remove the names of scans from bundles that are passed on, and refuse bundles that still contain some.

A full bundle may name the images that it was trained and tested on. A slim, packed or signed bundle is passed on, so
its records identify an image by the first digits of its SHA-256, and its command line contains no paths.
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

from .provenance import replace_paths
from .writer import KERAS

_TEXT_SUFFIXES = (".json", ".md", ".html", ".txt", ".csv")
_IN_NAME = r"[^\s\"'<>|/\\]"
# A search from every character of a long row of figures would take minutes, so a name begins where its word does.
_IMAGE_NAME = re.compile(
    rf"(?<!{_IN_NAME}){_IN_NAME}+\.(?:" + "|".join(suffix[1:] for suffix in suffixes()) + r"|dcm|nii|nii\.gz)\b",
    re.IGNORECASE,
)
_ALIAS = re.compile(r"[0-9a-f]{16}([0-9a-f]{48})?|image \d+")  # a hash, shortened or complete, or a number


def aliases(bundle: Bundle) -> dict[str, str]:
    """Map the name of each image in the bundle's records to the first digits of its SHA-256."""
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


def replace_image_names(content: bytes, known: Mapping[str, str], origin: str) -> str:
    """Replace every image name in JSON text by its alias, or by a number if it has none.

    The rest of the text stays unchanged, because records are compared byte by byte.
    """
    replaced: dict[str, str] = {}

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, dict):
            return {alias(key): alias_file(item) if key == "file" else clean(item) for key, item in value.items()}
        return alias(value) if isinstance(value, str) else value

    def alias(value: str) -> str:
        return replaced.setdefault(value, known[value]) if value in known else value

    def alias_file(value: Any) -> Any:
        if not isinstance(value, str) or value in known or value == KERAS or _ALIAS.fullmatch(value):
            return clean(value)
        return replaced.setdefault(value, f"image {sum(name.startswith('image ') for name in replaced.values()) + 1}")

    wanted = clean(parse(content, origin))
    text = content.decode()
    for name, short_name in replaced.items():
        for ascii_only in (True, False):
            text = text.replace(json.dumps(name, ensure_ascii=ascii_only), json.dumps(short_name))
    # A name may be written with unusual escapes. Then serialize the whole text again.
    return text if parse(text, origin) == wanted else json.dumps(wanted, indent=1) + "\n"


def anonymize_command(command: str) -> str:
    """A recorded command line without paths; empty if it cannot be parsed.

    Earlier releases recorded paths; now ``provenance`` replaces them when it records a command.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    return shlex.join([*words[:1], *replace_paths(words[1:], command=words[1:2])])


def check_anonymous(bundle: Bundle) -> None:
    """Raise BundleError if a bundle names scans other than those of its golden record."""
    listed = {entry.file for entry in bundle.entries()}
    own_files = {PurePosixPath(file).name for file in listed}
    for entry in bundle.manifest.documents:
        found = SPLIT if entry.file == SPLIT else None
        if entry.file.endswith(_TEXT_SUFFIXES) and not is_golden(entry.file):
            text = bundle.read(entry)
            names = set(_IMAGE_NAME.findall(text.decode(errors="replace"))) - own_files
            found = found or next(iter(sorted(names)), None)
            if entry.file in ("metrics.json", "parity.json"):
                found = found or _named_file(parse(text, entry.file), listed)
        if found:
            raise BundleError(
                f"{bundle.folder}: {entry.file} names scans, and this bundle is to be passed on",
                "Make a copy without them: 'mri-edge bundle slim BUNDLE --artifact FILE --out DIR'",
            )


def _named_file(value: Any, listed: set[str]) -> str | None:
    if isinstance(value, dict):
        file = value.get("file")
        if isinstance(file, str) and not (_ALIAS.fullmatch(file) or file in listed or file == KERAS):
            return file
        value = list(value.values())
    items = value if isinstance(value, list) else []
    return next((found for item in items if (found := _named_file(item, listed))), None)
