"""Test which label each class folder gets, and which label is the positive one."""

import shlex
import unicodedata

import pytest
from PIL import Image

from mri_edge.authoring.labels import KNOWN_LABELS
from mri_edge.cli import run
from mri_edge.errors import DataError, UsageError

pytest.importorskip("sklearn", reason="needs the extra 'train'")

from mri_edge.train.data.labels import Labels, choose_labels, match_labels
from mri_edge.train.data.selection import select

FOUR = ["notumor", "pituitary", "glioma", "meningioma"]


def test_known_folders_become_two_labels_and_the_mapping_is_described():
    labels = choose_labels([*FOUR, "no", "yes"])
    assert labels.names == KNOWN_LABELS
    assert labels.positive_name == "tumour"
    expected = "labels: no tumour = no, notumor; tumour = glioma, meningioma, pituitary, yes (positive: tumour)"
    assert labels.describe() == expected


def test_folders_rule_keeps_every_folder_without_a_positive_label():
    labels = choose_labels(FOUR, rule="folders")
    assert labels.names == ("glioma", "meningioma", "notumor", "pituitary")
    assert labels.positive is None
    assert labels.positive_name is None
    assert labels.describe() == "labels: glioma; meningioma; notumor; pituitary (no positive label)"
    assert choose_labels(FOUR, "pituitary", "folders").positive == 3


def test_folders_that_differ_only_in_case_have_one_label():
    labels = choose_labels(["No", "no", "Yes"], rule="folders")
    assert labels.folders == {"No": ["No", "no"], "Yes": ["Yes"]}
    assert labels.positive_name == "Yes"


def test_mapping_gives_each_folder_a_label_in_alphabetical_order():
    labels = choose_labels(FOUR, "tumor", "Glioma=tumor, meningioma=tumor,pituitary=tumor,notumor=healthy")
    assert labels.names == ("healthy", "tumor")
    assert labels.positive == 1
    assert labels.folders["tumor"] == ["glioma", "meningioma", "pituitary"]
    three = choose_labels(FOUR, rule="glioma=glioma,meningioma=other,pituitary=other,notumor=healthy")
    assert three.names == ("glioma", "healthy", "other")
    assert three.positive is None


def test_mapping_to_known_labels_needs_no_positive_one():
    labels = choose_labels(["a", "b"], rule="a=tumour,b=no tumour")
    assert (labels.names, labels.positive) == (KNOWN_LABELS, 1)


@pytest.mark.parametrize(
    ("positive", "rule", "message"),
    [
        (None, "glioma=tumor,notumor=healthy", r"no label to the folders meningioma, pituitary.*meningioma=LABEL"),
        ("x", "glioma=x,meningioma=x,notumor=y,pituitary=y,lesion=z", r"label 'z' has no images.*no folder lesion"),
        ("glioma", None, r"'glioma' is part of the label 'tumour'.*--labels folders --positive glioma"),
        ("nonsense", None, r"no label 'nonsense'\. Labels: no tumour, tumour"),
        (None, "glioma=x,meningioma=x,notumor=y,pituitary=y", r"which label is the positive one\? Labels: x, y"),
        (None, "glioma=x,meningioma=x,notumor=x,pituitary=x", r"at least two classes"),
    ],
)
def test_unusable_labels_are_rejected(positive, rule, message):
    with pytest.raises(DataError, match=message):
        choose_labels(FOUR, positive, rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("folder", r"takes 'folders' or pairs FOLDER=LABEL\. Received: 'folder'"),
        ("glioma=", "pairs FOLDER=LABEL"),
        ("a=x,A=y", "gives the folder 'A' two labels: x and y"),
        (" , ", "--labels is empty"),
    ],
)
def test_rules_that_cannot_be_read_are_rejected(rule, message):
    with pytest.raises(UsageError, match=message):
        choose_labels(FOUR, None, rule)


def test_a_positive_label_is_found_in_any_case():
    assert choose_labels(FOUR, "GLIOMA", "folders").positive_name == "glioma"


@pytest.mark.parametrize("other", ["tumor", " TUMOR ", "Tumor"])
def test_labels_of_a_mapping_that_differ_only_in_case_are_one(other):
    chosen = choose_labels(["a", "b", "c"], "tumor", f"a=Tumor,b={other},c=healthy")
    assert chosen == Labels(("healthy", "Tumor"), 1, {"healthy": ["c"], "Tumor": ["a", "b"]})
    assert choose_labels(["a", "b"], "y", f"a=Tumor,A={other},b=y").folders["Tumor"] == ["a"]
    matched = match_labels(["a", "b", "CLEAR"], TRAINED, f"a={other},b=tumor,clear=Healthy")
    assert matched.folders == {"healthy": ["CLEAR"], "tumor": ["a", "b"]}
    assert match_labels(["a", "Tumor"], TRAINED, "a=healthy").folders["tumor"] == ["Tumor"]


TRAINED = Labels(("healthy", "tumor"), 1, {"healthy": ["clear"], "tumor": ["glioma", "pituitary"]})


def test_folders_match_a_model_by_its_training_folders_and_label_names():
    matched = match_labels(["Clear", "glioma", "tumor"], TRAINED)
    assert matched == Labels(("healthy", "tumor"), 1, {"healthy": ["Clear"], "tumor": ["glioma", "tumor"]})
    alone = match_labels(["pituitary"], TRAINED)
    assert alone.folders == {"healthy": [], "tumor": ["pituitary"]}
    assert alone.describe() == "labels: healthy (no folder); tumor = pituitary (positive: tumor)"


def test_mapping_overrides_the_folders_of_a_model():
    matched = match_labels(["yes", "no", "glioma"], TRAINED, "yes=tumor,no=healthy,glioma=healthy")
    assert matched.folders == {"healthy": ["glioma", "no"], "tumor": ["yes"]}


@pytest.mark.parametrize(
    ("folders", "rule", "message"),
    [
        (
            ["yes", "clear"],
            None,
            r"folder 'yes' matches no label.*of the data: clear, yes; of the model: healthy, tumor",
        ),
        (["yes", "no"], None, r"--labels no=LABEL,yes=LABEL"),
        (["glioma", "clear"], "folders", r"folders clear, glioma match no label"),
        (
            ["yes", "clear"],
            "yes=lesion,clear=healthy",
            r"of the data: healthy, lesion.*--labels clear=healthy,yes=LABEL",
        ),
        ([], None, "no class folders"),
    ],
)
def test_unequal_label_sets_are_rejected_with_both_sets_and_an_example(folders, rule, message):
    with pytest.raises(DataError, match=message):
        match_labels(folders, TRAINED, rule)


def test_train_and_evaluate_share_their_training_options():
    from mri_edge.train.cli.evaluate import evaluate
    from mri_edge.train.cli.train import TRAINING, train

    texts = [
        {
            option.name: (option.opts, option.help, option.default)
            for option in command.params
            if option.name in TRAINING
        }
        for command in (train, evaluate)
    ]
    assert texts[0] == texts[1]
    assert set(texts[0]) == set(TRAINING) >= {"labels", "groups", "positive", "seed"}


def test_label_without_images_is_rejected_before_training(folders):
    with pytest.raises(DataError, match="leaves no image of tumour"):
        select(folders, None, ["yes/*"])


@pytest.mark.parametrize("rule", ["no=a,yes=b", "folders"])
def test_mapping_is_printed_before_training(folders, tmp_path, capfd, rule, monkeypatch):
    """Stop at the unknown backbone weights, which are loaded after the labels are chosen."""
    code = run(
        ["train", str(folders), "--out", str(tmp_path / "out"), "--labels", rule, "--backbone-weights", "nowhere"]
        + (["--positive", "b"] if "=" in rule else [])
    )
    assert code == 3
    printed = capfd.readouterr().err
    assert ("labels: a = no; b = yes (positive: b)" if "=" in rule else "labels: no; yes (positive: yes)") in printed


def test_known_folders_explain_a_positive_label_that_is_a_folder(tmp_path, capfd):
    for folder in ("notumor", "glioma"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / folder / "1.png")
    assert run(["train", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--positive", "glioma"]) == 2
    assert "keep every folder as a label: --labels folders --positive glioma" in capfd.readouterr().err


# Names that a shell, a file system or the option itself treats specially, and how --labels gives them.
ODD = ["two words", "les=ion", "it's", 'a"b', "$HOME", " outer ", "ges\N{LATIN SMALL LETTER U WITH DIAERESIS}nd"]


@pytest.mark.parametrize("folder", ODD)
def test_the_command_of_a_message_works_as_printed(folder):
    """A shell splits the printed option into what maps every folder, whatever is in the name of a folder."""
    with pytest.raises(DataError) as refused:
        match_labels([folder, "clear"], TRAINED)
    words = shlex.split(refused.value.hint.partition(": ")[2])
    assert words[0] == "--labels"
    assert match_labels([folder, "clear"], TRAINED, words[1].replace("LABEL", "tumor")).folders["tumor"] == [folder]


def test_a_comma_in_a_folder_name_asks_for_another_name():
    for choose in (lambda: match_labels(["a, b", "c"], TRAINED), lambda: choose_labels(["a, b", "c"], None, "c=x")):
        with pytest.raises(DataError, match=r"rename 'a, b', because --labels separates pairs by commas"):
            choose()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_that_look_equal_are_equal(form):
    folder = unicodedata.normalize(form, "ges\N{LATIN SMALL LETTER U WITH DIAERESIS}nd") + " "
    typed = "Ges\N{LATIN SMALL LETTER U WITH DIAERESIS}nd"
    assert choose_labels([folder, "b"], "y", f"{typed}=x,b=y").folders["x"] == [folder]
    assert choose_labels([folder, "b"], typed).positive_name == folder
    assert match_labels([folder], TRAINED, f"{typed}=healthy").folders["healthy"] == [folder]
    assert match_labels([folder], Labels(("n", "y"), 1, {"n": ["b"], "y": [typed]})).folders["y"] == [folder]
