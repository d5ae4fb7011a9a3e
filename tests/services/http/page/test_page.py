"""The page in a browser: scans go in by every way, and the answer, its heatmap and every error are shown."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import mri_edge
from mri_edge.services.http.security import Guard

from .conftest import EXAMPLES, Page

SCHEMAS = Path(mri_edge.__file__).parent / "inference"
DEMO = Path(mri_edge.__file__).parent / "services" / "http" / "page" / "demo"
SERIES = "phantom-series.nii.gz"


def test_dropped_picture_gets_label_probability_threshold_and_heatmap(page: Page, phantom: bytes) -> None:
    page.open()
    page.drop(("scan.jpg", phantom))
    page.wait_for_answer()
    page.wait_for_heatmap()
    answer = page.text(".answer")
    assert page.text("#detail-title") == "tumour"
    assert "scan.jpg" in answer
    assert "Research use only: not a medical device." in answer
    shown = float(page.text(".chance b"))
    threshold = float(page.text(".mark").removeprefix("threshold "))
    assert threshold <= shown <= 1
    bar, filled = page.find(".bar").rect, page.find(".bar i").rect
    assert filled["width"] / bar["width"] == pytest.approx(shown, abs=0.01)
    mark = page.run("parseFloat(getComputedStyle(document.querySelector('.bar'), '::after').left)")
    assert mark / bar["width"] == pytest.approx(threshold, abs=0.01)
    assert "small 0.1.0" in page.text(".facts")
    assert "CPUExecutionProvider" in page.text(".facts")
    assert "in 1.00 (0.72 to 1.00) of them" in page.text(".legend")
    assert page.text("#live") == f"scan.jpg: tumour, probability of tumour {shown:.3f}."


def test_heatmap_lies_exactly_over_the_picture_and_can_be_faded_and_hidden(page: Page, phantom: bytes) -> None:
    page.open()
    page.drop(("scan.jpg", phantom))
    page.wait_for_answer()
    page.wait_for_heatmap()
    section, color = (page.find(f".screen img{kind}") for kind in (":not(.color)", ".color"))
    assert section.rect == color.rect
    sizes = page.run("[...document.querySelectorAll('.screen img')].map((one) => one.naturalWidth / one.naturalHeight)")
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    page.driver.execute_script(
        "const slider = document.querySelector('.opacity input');"
        "slider.value = 100; slider.dispatchEvent(new Event('input'));"
    )
    assert page.run("getComputedStyle(document.querySelector('.color')).opacity") == "1"
    page.find("#heatmap-switch").click()
    assert not color.is_displayed()
    assert not page.find(".legend").is_displayed()


def test_everything_works_with_the_keyboard_alone(page: Page) -> None:
    page.open()
    page.press(Keys.TAB)
    assert page.run("document.activeElement.className") == "skip"
    assert page.run("document.activeElement.getBoundingClientRect().top") >= 0
    page.tab_to('#demo-list [data-name="mni152-slice-2.jpg"]')
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(Keys.ENTER)
    page.wait_for_answer()
    assert page.run("document.activeElement.id") == "detail"
    page.tab_to("#heatmap-switch")
    page.press(Keys.SPACE)
    assert page.run("document.querySelector('.legend').hidden")
    page.tab_to("[name=theme]")
    page.press(Keys.ARROW_RIGHT)
    assert page.run("document.documentElement.dataset.theme") in ("light", "dark")


def test_series_has_a_slider_a_curve_and_the_note_that_it_is_not_calibrated(page: Page) -> None:
    pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    page.open()
    page.try_demo(SERIES)
    page.wait_for_answer()
    assert "Score of the series" in page.text(".answer")
    assert "not calibrated on patients" in page.text(".answer")
    assert len(page.driver.find_elements("css selector", ".series > svg .dot")) == 20
    assert page.text(".series > svg .threshold-text").startswith("threshold 0.")
    slider = page.find(".stepper input")
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext").startswith("Slice 1 of 20, at 0.0 mm, no tumour, 0.")
    left = page.find(".curve .here").get_attribute("x1")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.text(".slice-line").startswith("Slice 3 of 20, at 8.0 mm")
    assert float(page.find(".curve .here").get_attribute("x1")) > float(left)
    page.driver.execute_script("document.querySelector('#detail').focus()")
    page.press(Keys.ARROW_LEFT)
    assert page.text(".slice-line").startswith("Slice 2 of 20")
    page.wait_for_heatmap()
    assert page.run("document.querySelectorAll('.series tbody tr').length") == 20


def test_heatmap_of_a_slice_is_about_that_slice(page: Page) -> None:
    """The page sends the volume again with the index of the slice that is shown."""
    pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    page.open()
    page.driver.execute_script(
        """
        const open = XMLHttpRequest.prototype.open;
        window.asked = [];
        XMLHttpRequest.prototype.open = function (method, address) {
          asked.push(new URL(address).searchParams);
          return open.call(this, method, address);
        };
        """
    )
    page.try_demo(SERIES)
    page.wait_for_answer()
    page.find(".stepper input").send_keys(Keys.END)
    assert page.text(".slice-line").startswith("Slice 20 of 20")
    page.wait("asked.at(-1).get('index') == '19' && !document.querySelector('.busy')")
    assert page.run("asked.at(-1).get('heatmap')") == "1"
    assert page.run("asked[0].get('by')") == "series"


def test_slices_in_dicom_are_one_series_whose_slices_have_heatmaps(page: Page, tmp_path: Path) -> None:
    """Only the file of the slice is sent again for its heatmap."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    scan = pydicom.dcmread(EXAMPLES / "dicom" / "mni152-slice-2.dcm")
    uid = scan.SOPInstanceUID
    for number in range(3):
        scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = f"{uid[:50]}.{number}"
        scan.ImagePositionPatient = [0, 0, 4 * number]
        scan.save_as(tmp_path / f"slice-{number}.dcm")
    page.open()
    page.choose(*sorted(tmp_path.iterdir()))
    page.wait_for_answer()
    page.wait_for_heatmap()
    assert "Score of the series" in page.text(".answer")
    assert page.text(".slice-line").startswith("Slice 1 of 3")
    assert page.run("document.querySelector('.screen img').naturalWidth") > 0


def test_one_file_with_many_slices_is_a_series(page: Page) -> None:
    data = pytest.importorskip("pydicom.data", reason="needs the extra 'dicom'")
    pytest.importorskip("data_store", reason="scans of real scanners are in pydicom-data (group 'test')")
    page.open()
    page.choose(Path(data.get_testdata_file("emri_small.dcm")))
    page.wait("document.querySelector('.stepper')")
    assert page.run("document.querySelectorAll('.series tbody tr').length") == 10
    page.wait_for_heatmap()


def test_series_without_an_answer_is_announced_without_a_score(page: Page, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 48, 3), np.int16), np.diag((2, 2, 4, 1))), tmp_path / "blank.nii")
    page.open()
    page.choose(tmp_path / "blank.nii")
    page.wait("document.querySelector('#live').textContent")
    page.wait_for_answer()
    assert page.text("#live") == "blank.nii: no answer."


def coronal_dicom(folder: Path) -> list[Path]:
    """Write a series of coronal slices, one in each file."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    scan = pydicom.dcmread(EXAMPLES / "dicom" / "mni152-slice-2.dcm")
    scan.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    for number in range(3):
        scan.SOPInstanceUID = scan.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}"
        scan.ImagePositionPatient = [0, 4 * number, 0]
        scan.save_as(folder / f"slice-{number}.dcm")
    return sorted(folder.iterdir())


def coronal_nifti(folder: Path) -> list[Path]:
    """Write a volume of coronal slices, which has no identifier."""
    nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    values = np.random.default_rng(5).integers(0, 200, (40, 48, 3)).astype(np.int16)
    affine = np.array([[2.0, 0, 0, 0], [0, 0, 4, 0], [0, 2, 0, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(values, affine), folder / "volume.nii")
    return [folder / "volume.nii"]


def zipped_nifti(folder: Path) -> list[Path]:
    """Pack a coronal volume beside the axial one of the demo."""
    (volume,) = coronal_nifti(folder)
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        archive.write(volume, "a/volume.nii")
        archive.write(DEMO / SERIES, f"b/{SERIES}")
    return [folder / "study.zip"]


@pytest.mark.parametrize("write", [coronal_dicom, coronal_nifti, zipped_nifti])
def test_series_of_another_plane_is_skipped_until_the_reader_wants_it(
    page: Page, tmp_path: Path, write: Callable[[Path], list[Path]]
) -> None:
    files = write(tmp_path)
    page.open()
    page.choose(*files)
    page.wait("document.querySelector('#detail-title')")
    count = page.run("document.querySelectorAll('#rows li').length")
    assert page.text("#detail-title") == "Not classified"
    assert page.text(".alert") == "Coronal, and the model is for axial slices."
    page.find(".detail button").click()
    page.wait("document.querySelector('.stepper')")
    assert "the training scans of this plane nearly all show a tumor" in page.text(".warnings")
    assert page.run("document.querySelectorAll('#rows li').length") == count


def test_second_click_on_a_button_whose_answer_is_on_its_way_changes_nothing(
    page: Page, tmp_path: Path, healthy: bytes
) -> None:
    page.open()
    page.choose(*coronal_nifti(tmp_path))
    page.wait("document.querySelector('.alert')")
    page.drop(("other.jpg", healthy))
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length == 2")
    page.find("#rows li:first-child button").click()
    page.driver.execute_script("const again = document.querySelector('.detail button'); again.click(); again.click();")
    page.wait("document.querySelector('.stepper')")
    page.wait_for_answer()
    names = page.run("[...document.querySelectorAll('.row-name')].map((one) => one.textContent)")
    assert sorted(names) == ["other.jpg", "volume.nii"]


def test_model_can_be_chosen_if_the_server_has_several(
    page_of: Callable[[str], Page], serve: Callable[..., Any], healthy: bytes
) -> None:
    page = page_of(serve("--model", "small", "--model", "lite").wait_until_ready())
    page.open()
    page.wait("!document.querySelector('#model-choice').hidden")
    page.find("#model").send_keys("lite")
    page.drop(("scan.jpg", healthy))
    page.wait_for_answer()
    assert "lite 0.1.0" in page.text(".facts")


def test_pasted_picture_is_classified(page: Page, healthy: bytes) -> None:
    page.open()
    page.drop(("image.png", healthy), event="paste")
    page.wait_for_answer()
    assert page.text("#detail-title") == "no tumour"


def test_name_of_a_file_cannot_become_markup(page: Page, healthy: bytes) -> None:
    name = "<img src=x onerror=alert(1)>.jpg"
    page.open()
    page.drop((name, healthy), (f"2{name}", healthy))
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length == 2")
    assert page.text(".source") in (name, f"2{name}")
    assert page.text(".row-name") in (name, f"2{name}")
    assert page.run("document.querySelector('#results img[src=x]')") is None


def test_folder_is_a_list_of_results_with_errors_beside_their_files(
    page: Page, tmp_path: Path, phantom: bytes, healthy: bytes
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, content in {"10.jpg": phantom, "9.jpg": healthy, "bad.png": b"no picture", "notes.txt": b"x"}.items():
        (folder / name).write_bytes(content)
    (folder / ".hidden").write_bytes(b"x")
    page.refuses = True
    page.open()
    page.find("#folder").send_keys(str(folder))
    page.wait("document.querySelector('#list-title').textContent == '3 scans'")
    page.wait_for_answer()
    rows = [row.text.splitlines() for row in page.driver.find_elements("css selector", "#rows li")]
    assert [row[0] for row in rows] == ["scans/9.jpg", "scans/10.jpg", "scans/bad.png"]
    assert [row[1] for row in rows[:2]] == ["no tumour", "tumour"]
    assert rows[2][1].startswith("10 bytes: not PNG, JPEG,")
    assert page.text("#notes") == "1 file was skipped, because it is no scan: scans/notes.txt."
    page.find("#rows li:last-child button").click()
    assert page.text("#detail-title") == "No answer"
    page.driver.execute_script(
        "const filter = document.querySelector('#filter');"
        "filter.value = 'positive'; filter.dispatchEvent(new Event('change'));"
    )
    assert page.text("#rows").splitlines()[0] == "scans/10.jpg"
    assert page.run("[...document.querySelector('#filter').options].map((one) => one.text)") == [
        "all (3)",
        "positive (1)",
        "other answers (1)",
        "with warnings (0)",
        "without an answer (1)",
    ]


def test_many_scans_are_sent_a_few_at_a_time_and_can_be_cancelled(page: Page, healthy: bytes) -> None:
    page.open()
    page.driver.execute_script(
        """
        const send = XMLHttpRequest.prototype.send;
        window.together = window.most = 0;
        XMLHttpRequest.prototype.send = function (body) {
          most = Math.max(most, ++together);
          this.addEventListener("readystatechange", () => { if (this.readyState === 4) together--; });
          return send.call(this, body);
        };
        """
    )
    page.drop(*((f"{number}.jpg", healthy) for number in range(60)))
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length >= 60")
    page.wait_for_answer()
    assert page.run("most") <= 4  # three scans, and the heatmap of the open result
    page.drop(*((f"more {number}.jpg", healthy) for number in range(300)))
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length > 60")
    page.driver.execute_script("document.querySelector('#cancel').click()")
    note = page.text("#notes")
    assert note.startswith("Cancelled: ")
    left = int(note.split()[1])
    assert page.run("document.querySelectorAll('#rows li').length") == 360 - left
    assert page.run("document.querySelectorAll('#rows .row:disabled').length") == 0
    page.wait("together == 0")
    assert page.run("document.querySelectorAll('#rows li').length") == 360 - left


def download(page: Page, folder: Path, button: str, name: str) -> str:
    """Click a button that saves a file, and return its text."""
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder), "eventsEnabled": True}
    )
    page.find(button).click()
    saved = folder / name
    for _ in range(600):
        if saved.exists() and saved.read_bytes():
            break
        page.driver.execute_async_script("setTimeout(arguments[0], 100)")
    return saved.read_text(encoding="utf-8")


def check_schema(record: dict[str, Any]) -> None:
    jsonschema.validate(record, json.loads((SCHEMAS / "result.schema.json").read_text(encoding="utf-8")))


def test_saved_json_is_what_predict_prints(page: Page, tmp_path: Path, phantom: bytes) -> None:
    page.open()
    page.drop(("a scan.jpg", phantom))
    page.wait_for_answer()
    page.wait_for_heatmap()
    record = json.loads(download(page, tmp_path, ".facts button", "a_scan.jpg.json"))
    check_schema(record)
    assert record["label"] == "tumour"
    assert record["file"] == "a scan.jpg"
    assert "picture" not in record


def test_all_saved_results_have_a_line_for_each_file(page: Page, tmp_path: Path, healthy: bytes) -> None:
    """Also for one that cannot be read, as ``predict --json`` prints, and for one that never reached the server."""
    page.refuses = True
    page.open()
    page.drop(("bad.png", b"no picture"), ("good.jpg", healthy))
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length == 2")
    page.wait_for_answer()
    page.driver.execute_script("XMLHttpRequest.prototype.send = function () { setTimeout(() => this.onerror()); };")
    page.drop(("lost.jpg", healthy))
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length == 3")
    text = download(page, tmp_path, "#save-all", "mri-edge-results.jsonl")
    bad, good, lost = map(json.loads, text.splitlines())
    check_schema(bad)
    check_schema(good)
    assert [record["file"] for record in (bad, good, lost)] == ["bad.png", "good.jpg", "lost.jpg"]
    assert bad["code"] == "unsupported"
    assert lost["error"] == "The connection to the server broke"


def test_token_is_asked_for_and_kept_in_memory_only(
    page_of: Callable[[str], Page], serve: Callable[..., Any], tmp_path: Path, healthy: bytes
) -> None:
    (tmp_path / "token").write_text("0123456789abcdef", encoding="utf-8")
    page = page_of(serve("--model", "small", "--token-file", str(tmp_path / "token")).wait_until_ready())
    page.open()
    page.drop(("scan.jpg", healthy))
    page.wait("document.querySelector('#token').open")
    assert page.run("document.activeElement.id") == "token-value"
    page.press("wrong", Keys.ENTER)
    page.wait("document.querySelector('#token-text').textContent.includes('refused')")
    page.wait("document.querySelector('#token').open")
    page.press("0123456789abcdef", Keys.ENTER)
    page.wait_for_answer()
    assert page.text("#detail-title") == "no tumour"
    assert page.run("document.documentElement.outerHTML.includes('0123456789abcdef')") is False
    assert stored(page) == {"local": 0, "session": 0, "databases": 0, "caches": 0, "cookies": ""}


def test_no_token_for_one_scan_is_none_for_all(
    page_of: Callable[[str], Page], held: Callable[..., Any], healthy: bytes
) -> None:
    """Otherwise a reader who cancels the dialog gets it again for each scan."""
    page = page_of(held(released=True, guard=Guard(b"0123456789abcdef", local=False)).url)
    page.open()
    page.drop(*((f"{number}.jpg", healthy) for number in range(12)))
    page.wait("document.querySelector('#token').open")
    page.press(Keys.ESCAPE)
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length == 12")
    assert page.run("document.querySelector('#token').open") is False
    answers = page.run("[...document.querySelectorAll('.row-answer')].map((one) => one.textContent)")
    assert answers == ["The server needs a token. Try again and enter it."] * 12
    page.drop(("again.jpg", healthy))
    page.wait("document.querySelector('#token').open")
    page.press("0123456789abcdef", Keys.ENTER)
    page.wait("document.querySelector('#rows li:last-child .row:not(:disabled)')")
    assert "tumour" in page.text("#rows li:last-child")


@pytest.mark.parametrize("letter", ["\u200b", "\u00a0", " ", "\u0142"])
def test_letter_that_no_token_has_does_not_lock_the_page(
    page_of: Callable[[str], Page], held: Callable[..., Any], healthy: bytes, letter: str
) -> None:
    """A token that is copied from a chat or a document may bring invisible letters with it."""
    page = page_of(held(released=True, guard=Guard(b"0123456789abcdef", local=False)).url)
    page.open()
    page.drop(("scan.jpg", healthy))
    page.wait("document.querySelector('#token').open")
    page.press(f"0123456789{letter}abcdef{letter}", Keys.ENTER)
    page.wait_for_answer()
    assert "tumour" in page.text("#detail-title")


def stored(page: Page) -> dict[str, Any]:
    """Return how much the page has stored in the browser."""
    return page.driver.execute_async_script(
        """
        const done = arguments[0];
        Promise.all([indexedDB.databases(), caches.keys()]).then(([databases, names]) => done({
          local: localStorage.length, session: sessionStorage.length, databases: databases.length,
          caches: names.length, cookies: document.cookie,
        }));
        """
    )


def test_server_that_stopped_is_an_error_in_words(
    page_of: Callable[[str], Page], serve: Callable[..., Any], healthy: bytes
) -> None:
    process = serve("--model", "small")
    page = page_of(process.wait_until_ready())
    page.open()
    process.end()
    page.drop(("scan.jpg", healthy))
    page.wait("document.querySelector('#detail-title')")
    assert page.text("#detail-title") == "No answer"
    assert page.text(".alert").startswith("The connection to the server broke. Check that it runs.")


def test_clearing_removes_every_result(page: Page, healthy: bytes) -> None:
    page.open()
    page.drop(("1.jpg", healthy), ("2.jpg", healthy))
    page.wait_for_answer()
    page.wait("document.querySelectorAll('#rows .row:not(:disabled)').length == 2")
    page.find("#clear").click()
    assert not page.find("#results").is_displayed()
    assert page.find("#demos").is_displayed()
    assert page.run("document.querySelectorAll('#rows li, #detail > *').length") == 0


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize(("button", "spoken"), [("cancel", "Cancelled: 1 scan was not"), ("clear", "The results are")])
def test_what_ends_the_work_is_the_last_thing_that_the_page_says(
    page_of: Callable[[str], Page], held: Callable[..., Any], healthy: bytes, others: int, button: str, spoken: str
) -> None:
    server = held(released=True)
    page = page_of(server.url)
    page.open()
    if others:
        page.drop(("answered.jpg", healthy))
        page.wait_for_answer()
    server.engine.released.clear()
    page.drop(("waiting.jpg", healthy))
    page.wait("document.querySelector('#progress-text').textContent.startsWith('Waiting')")
    page.find(f"#{button}").click()
    server.wait_until(lambda: '"reason": "disconnected"' in server.lines)
    page.wait("document.querySelector('#progress').hidden")
    assert page.text("#live").startswith(spoken)
    is_empty = button == "clear" or not others
    assert page.find("#demos").is_displayed() is is_empty
    assert page.find("#results").is_displayed() is not is_empty
    assert page.find("#clear").is_displayed() is not is_empty
