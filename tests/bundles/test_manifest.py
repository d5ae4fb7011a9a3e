"""A manifest survives a round trip, an invalid one is refused with the place of the error; schema and code agree."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_edge.authoring.card import card
from mri_edge.bundles.decode import parse
from mri_edge.bundles.manifest import (
    Artifact,
    Calibration,
    Document,
    HeatmapScore,
    Manifest,
    Metric,
    Parity,
    Recalibration,
    SeriesRule,
)
from mri_edge.bundles.split import Split
from mri_edge.errors import ManifestError

CHECKOUT = Path(__file__).resolve().parents[2]
SCHEMA = CHECKOUT / "runtime" / "bundles" / "manifest.schema.json"


@pytest.fixture(scope="session")
def full(tiny_manifest: Manifest, tiny_artifact: Artifact) -> Manifest:
    """A manifest with every optional part."""
    parity = Parity("undecided", images=51, max_difference=0.01, mean_difference=0.001, flips=1)
    return replace(
        tiny_manifest,
        threshold=0.5,
        artifacts=(
            replace(tiny_artifact, parity=parity, made_with={"opset": 17, "per_channel": True}),
            replace(tiny_artifact, file="small/model.int8.onnx", precision="int8"),
        ),
        metrics={"accuracy": Metric(0.88, 0.77, 0.95, images=51, method="Wilson")},
        calibration=Calibration("minmax", images=202, seed=0, fingerprint="1" * 64),
        documents=(Document("metrics.json", 2, "0" * 64),),
        licences={"backbone": "BSD-3-Clause"},
        heatmaps=HeatmapScore(
            created="2026-01-01T00:00:00+00:00",
            artifact="model.onnx",
            sha256="2" * 64,
            engine="onnxruntime",
            provider="CPUExecutionProvider",
            method="covering",
            scans=30,
            lesions=60,
            data="images that were not in training",
            fingerprint="3" * 64,
            metrics={"pointing_game": Metric(0.9, 0.8, 0.95, images=40, method="Wilson")},
        ),
        series=SeriesRule(window_mm=12.5, least_slices=4, threshold=0.6, calibration="200 patients of one hospital"),
    )


@pytest.fixture(scope="session")
def plain(full: Manifest) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(full.to_json())
    return data


def _refused(data: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(json.dumps(data))
    return str(caught.value)


# --- calibration


def test_an_int8_artifact_records_what_calibrated_it(full: Manifest, tiny_artifact: Artifact) -> None:
    """The manifest holds the last calibration; artifacts of older bundles have no calibration of their own."""
    searched = Calibration("search", images=9, seed=1, fingerprint="2" * 64)
    own = replace(tiny_artifact, file="own.onnx", precision="int8", made_with={"calibration": asdict(searched)})
    manifest = replace(full, artifacts=(*full.artifacts, own))
    calibrations = Manifest.from_json(manifest.to_json()).calibrations()
    assert calibrations == {full.calibration: ["small/model.int8.onnx"], searched: ["own.onnx"]}
    [training] = [section for section in card(manifest, {}, Split(())) if section.title == "Training Data"]
    assert "Ranges of small/model.int8.onnx: minmax over 202 images, seed 0." in training.blocks
    assert "Ranges of own.onnx: search over 9 images, seed 1." in training.blocks


# --- round trip


def test_round_trip(full: Manifest, tiny_manifest: Manifest) -> None:
    for manifest in (full, tiny_manifest):
        assert Manifest.from_json(manifest.to_json()) == manifest
        assert Manifest.from_json(manifest.to_json().encode()) == manifest


@given(
    name=st.text(),
    use=st.text(),
    labels=st.lists(st.text(), min_size=2, unique=True),
    threshold=st.none() | st.floats(0, 1),
    libraries=st.dictionaries(st.text(), st.text()),
    details=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()),
)
@settings(max_examples=60, deadline=None)
def test_round_trip_of_any_content(
    tiny_manifest: Manifest,
    name: str,
    use: str,
    labels: list[str],
    threshold: float | None,
    libraries: dict[str, str],
    details: dict[str, Any],
) -> None:
    manifest = replace(
        tiny_manifest,
        name=name,
        intended_use=use,
        labels=tuple(labels),
        threshold=threshold,
        creation=replace(tiny_manifest.creation, libraries=libraries),
        training=replace(tiny_manifest.training, details=details),
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_text_is_readable_and_ends_with_a_line_feed(full: Manifest) -> None:
    text = replace(full, intended_use="Größe").to_json()
    assert "Größe" in text
    assert text.endswith("}\n")


def test_artifact_by_file(full: Manifest) -> None:
    assert full.artifact("model.onnx") is full.artifacts[0]
    assert full.artifact("none") is None


def test_defaults_may_be_left_out(plain: dict[str, Any]) -> None:
    for field in ("metrics", "calibration", "documents", "intended_use", "limits", "licences"):
        del plain[field]
    assert Manifest.from_json(json.dumps(plain)).documents == ()


@pytest.fixture(autouse=True)
def _fresh(plain: dict[str, Any]) -> Iterator[None]:
    """Tests change ``plain`` in place."""
    kept = copy.deepcopy(plain)
    yield
    plain.clear()
    plain.update(kept)


# --- strictness


@pytest.mark.parametrize("version", [0, 4, "1", None, [1], {}, True, 1.5])
def test_other_schema_version_is_refused_with_a_message(plain: dict[str, Any], version: Any) -> None:
    plain["schema_version"] = version
    assert "schema" in _refused(plain)


def test_missing_schema_version_is_refused(plain: dict[str, Any]) -> None:
    del plain["schema_version"]
    assert "schema version must be 1 to 3. Received: None" in _refused(plain)


def test_the_place_of_an_error_is_named(plain: dict[str, Any]) -> None:
    plain["artefacts"][1]["input"]["shape"][2] = "128"
    message = _refused(plain)
    assert "artefacts[1]: input: shape[2]: must be int. Received: '128'" in message
    assert "\n" not in message


def test_error_messages_are_short_and_on_one_line(plain: dict[str, Any]) -> None:
    plain["licences"] = {"a\n\x1b[31m" + "k" * 5000: 7}
    assert len(message := _refused(plain)) < 300
    assert message.isprintable()
    plain["\n" + "u" * 5000] = 7
    assert len(message := _refused(plain)) < 300
    assert message.isprintable()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("labels", ["yes"], "at least two"),
        ("labels", ["yes", "yes"], "repeated"),
        ("positive", 2, "no label has index 2"),
        ("positive", -1, "no label has index -1"),
        ("threshold", 1.01, r"must be in [0, 1]"),
        ("threshold", -0.01, r"must be in [0, 1]"),
    ],
)
def test_checks_beyond_types(plain: dict[str, Any], field: str, value: Any, words: str) -> None:
    plain[field] = value
    assert words in _refused(plain)


def test_only_more_than_two_labels_need_no_positive_one(plain: dict[str, Any]) -> None:
    plain["positive"] = plain["threshold"] = None
    assert "must be the index of one of the two labels" in _refused(plain)
    plain["labels"] = ["a", "b", "c"]
    assert Manifest.from_json(json.dumps(plain)).positive is None


@pytest.mark.parametrize(
    ("field", "value"), [("height", 0), ("width", -1), ("deviation", [1, 0, 1]), ("resize", "area")]
)
def test_impossible_preprocessing(plain: dict[str, Any], field: str, value: Any) -> None:
    plain["preprocessing"][field] = value
    assert "preprocessing" in _refused(plain)


def test_one_file_is_listed_once(plain: dict[str, Any]) -> None:
    plain["documents"][0]["file"] = "model.onnx"
    assert "a file is listed twice" in _refused(plain)


PATHS = [
    "/etc/passwd", "../up", "a/../../up", "..", ".", "", "a//b", "a/", "/", "C:/x", "C:x", "a\\b", "..\\up",
    "nul\0", "line\nfeed", "tab\t", "bell\x07", "del\x7f",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("part", ["artefacts", "documents"])
def test_files_lie_inside_the_bundle(plain: dict[str, Any], part: str, path: str) -> None:
    plain[part][0]["file"] = path
    assert "must be inside the bundle" in _refused(plain)


@pytest.mark.parametrize("path", ["a.onnx", "report/roc.png", "..a", "a..b", ".hidden", "Größe.onnx", "a b", "..."])
def test_plain_names_are_taken(plain: dict[str, Any], path: str) -> None:
    plain["artefacts"][0]["file"] = path
    assert Manifest.from_json(json.dumps(plain)).artifacts[0].file == path


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "1", '"text"', "{}", "\0", "[" * 100_000, '{"a":' * 100_000,
        b"\xff\xfe\xfa", b"\x89PNG\r\n", "{'schema_version': 1}", '{"schema_version": 1}',
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_hostile_json_is_a_manifest_error(text: str | bytes) -> None:
    with pytest.raises(ManifestError, match=r"mine\.json") as caught:
        Manifest.from_json(text, origin="mine.json")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content",
    [b'{"a": "\xed\xa0\x80"}', b'{"a": "\\ud800"}', *('{"a": 1}'.encode(name) for name in ("utf-16", "utf-32-le"))],
    ids=["half of a pair", "half of a pair, escaped", "UTF-16", "UTF-32"],
)
def test_json_that_is_no_valid_text_in_utf_8_is_refused(content: bytes) -> None:
    with pytest.raises(ManifestError, match=r"mine\.json: not valid JSON"):
        parse(content, "mine.json")
    assert parse('\ufeff{"a": "ä"}'.encode(), "mine.json") == {"a": "ä"}


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_deeply_nested_json_is_refused(start: str, end: str) -> None:
    deepest = 64 // len(end)
    for levels in (1, deepest):
        parse(start * levels + "1" + end * levels, "mine.json")
    for levels in (deepest + 1, 400):
        with pytest.raises(ManifestError, match="more than 64 levels"):
            parse(start * levels + "1" + end * levels, "mine.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "9" * 5000])
def test_invalid_numbers_are_refused(full: Manifest, number: str) -> None:
    plain = json.loads(full.to_json())
    plain["preprocessing"]["scale"] = "HERE"
    text = json.dumps(plain).replace('"HERE"', number)
    with pytest.raises(ManifestError) as caught:
        Manifest.from_json(text)
    assert len(str(caught.value)) < 300


def test_figures_that_json_cannot_hold_are_not_written(full: Manifest) -> None:
    with pytest.raises(ManifestError, match="not a finite number"):
        replace(full, metrics={"auc": Metric(float("nan"), 0, 1, 51, "none")}).to_json()


# --- recalibration


@pytest.fixture
def recalibrated(full: Manifest) -> dict[str, Any]:
    change = Recalibration(
        temperature=1.5,
        log_odds_offset=-2.0,
        prevalence=0.1,
        original_threshold=0.5,
        threshold_rule="a test",
        created="2026-01-01T00:00:00+00:00",
        artifact="model.onnx",
        engine="onnxruntime",
        provider="CPUExecutionProvider",
        scans={"no": 100, "yes": 80},
        independent_scans={"no": 90, "yes": 75},
        fingerprint="3" * 64,
        metrics={"sensitivity": Metric(0.95, 0.9, 0.98, images=80, method="Wilson")},
    )
    data: dict[str, Any] = json.loads(replace(full, recalibration=change).to_json())
    return data


def test_a_recalibrated_manifest_has_a_version_that_older_releases_refuse(
    full: Manifest, recalibrated: dict[str, Any]
) -> None:
    assert recalibrated["schema_version"] == 2
    manifest = Manifest.from_json(json.dumps(recalibrated))
    assert json.loads(manifest.to_json()) == recalibrated
    assert manifest.recalibration is not None
    assert (manifest.recalibration.artifact, manifest.recalibration.scans) == ("model.onnx", {"no": 100, "yes": 80})
    plain = json.loads(full.to_json())
    assert plain["schema_version"] == 1
    assert "recalibration" not in plain


def test_a_release_that_ignores_the_recalibration_cannot_be_asked_to_read_it(recalibrated: dict[str, Any]) -> None:
    recalibrated["schema_version"] = 1
    assert "recalibration: needs schema version 2 or later. Received: 1" in _refused(recalibrated)


def test_a_recalibration_changes_the_title(full: Manifest, recalibrated: dict[str, Any]) -> None:
    titles = {full.title}
    for temperature, offset in ((1.5, -2.0), (1.6, -2.0), (1.5, 0.0)):
        recalibrated["recalibration"] |= {"temperature": temperature, "log_odds_offset": offset}
        titles.add(Manifest.from_json(json.dumps(recalibrated)).title)
    assert len(titles) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0), ("temperature", -1), ("temperature", 101), ("temperature", 1e-320),
        ("log_odds_offset", 51), ("log_odds_offset", -1e300), ("prevalence", 1.5), ("original_threshold", -0.1),
    ],
)  # fmt: skip
def test_an_impossible_recalibration_is_refused(recalibrated: dict[str, Any], field: str, value: float) -> None:
    recalibrated["recalibration"][field] = value
    assert f"recalibration: {field}: must be in" in _refused(recalibrated)


# --- the score of heatmaps


def test_a_manifest_without_a_score_keeps_its_bytes(full: Manifest, tiny_manifest: Manifest) -> None:
    """Signatures of older bundles stay valid, and older releases read a manifest with a score."""
    assert "heatmaps" not in json.loads(tiny_manifest.to_json())
    assert Manifest.from_json(tiny_manifest.to_json()).heatmaps is None
    plain = json.loads(full.to_json())
    assert plain["schema_version"] == 1
    assert plain["heatmaps"]["artefact"] == "model.onnx"
    assert full.content_hash == replace(full, heatmaps=None).content_hash


# --- the rule for series


def test_a_rule_for_series_belongs_to_the_identity_of_the_model(full: Manifest, tiny_manifest: Manifest) -> None:
    assert "series" not in json.loads(tiny_manifest.to_json())
    assert Manifest.from_json(full.to_json()).series == full.series
    assert full.content_hash != replace(full, series=None).content_hash


@pytest.mark.parametrize(("field", "value"), [("window_mm", -1), ("least_slices", 0), ("threshold", 1.5)])
def test_an_impossible_rule_for_series_is_refused(plain: dict[str, Any], field: str, value: float) -> None:
    changed = {**plain, "series": {**plain["series"], field: value}}
    assert f"series: {field}: must be" in _refused(changed)


# --- the schema


def _script() -> dict[str, Any]:
    return runpy.run_path(str(CHECKOUT / "scripts" / "make_schema.py"))


def test_the_committed_schema_equals_the_generated_one() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == _script()["text"](), "run: python scripts/make_schema.py"


@pytest.fixture(scope="session")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="the schema's peer is jsonschema (group 'dev')")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(item, (*path, key))


def _mutants(plain: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Manifests with each value replaced by each type, each field and item removed, a field added to each object."""
    for path in list(_places(plain)):
        for value in (None, "x", "", 1, -1, 0, 1.0, 1.5, True, [], {}, [None], {"x": 1}, 10**30):
            yield f"{path} = {value!r}", _changed(plain, path, lambda _, v=value: v)
        yield f"{path} + field", _changed(plain, path, lambda old: {**old, "x": 1} if isinstance(old, dict) else old)
        yield f"{path} + item", _changed(plain, path, lambda old: [*old, "x"] if isinstance(old, list) else old)
        if path:
            yield f"{path} removed", _changed(plain, path[:-1], lambda old, k=path[-1]: _without(old, k))
    for file in PATHS:
        yield f"file {file!r}", _changed(plain, ("artefacts", 0, "file"), lambda _, f=file: f)


def _changed(value: Any, path: tuple[str | int, ...], change: Any) -> Any:
    if not path:
        return change(copy.deepcopy(value))
    copied = copy.copy(value)
    copied[path[0]] = _changed(value[path[0]], path[1:], change)
    return copied


def _without(value: Any, key: str | int) -> Any:
    if isinstance(value, list):
        return [item for i, item in enumerate(value) if i != key]
    return {name: item for name, item in value.items() if name != key}


@pytest.mark.parametrize("kind", ["plain", "recalibrated"])
def test_schema_and_code_refuse_the_same(kind: str, validator: Any, request: pytest.FixtureRequest) -> None:
    plain = request.getfixturevalue(kind)
    assert validator.is_valid(plain)
    disagreed, counts = [], {True: 0, False: 0}
    for what, mutant in _mutants(plain):
        try:
            Manifest.from_json(json.dumps(mutant))
            taken = True
        except ManifestError:
            taken = False
        counts[taken] += 1
        if what == f"('positive',) = {10**30}":
            continue  # an index beyond the labels: a schema cannot express that
        if taken != validator.is_valid(mutant):
            disagreed.append(f"{what}: code {'takes' if taken else 'refuses'} it")
    assert disagreed == []
    assert min(counts.values()) > 100  # both answers were met


def test_real_manifests_fit_the_schema(tiny_bundle: Path, validator: Any) -> None:
    embedded = sorted((CHECKOUT / "runtime" / "models").glob("*/manifest.json"))
    for path in (tiny_bundle / "manifest.json", *embedded):
        validator.validate(json.loads(path.read_text(encoding="utf-8")))


def test_the_package_contains_the_schema() -> None:
    from importlib.resources import files

    assert (files("mri_edge") / "bundles" / "manifest.schema.json").read_text(encoding="utf-8").startswith("{")
