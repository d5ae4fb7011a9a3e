"""scripts/ablate.py trains a recipe with one part changed, and says in the record which."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from click import ClickException
from click.testing import CliRunner

pytest.importorskip("keras", reason="needs the extra 'train'")
sys.path.insert(0, str(Path(__file__).parents[2]))  # scripts/ is not installed

from mri_edge.train.recipes.lite import LITE
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.recipes.registry import RECIPES
from mri_edge.train.recipes.robust import ROBUST
from scripts import ablate


@pytest.mark.parametrize("name", ablate.CHANGES)
def test_change_replaces_one_part_of_the_recipe(name: str) -> None:
    recipe = ablate.CHANGES[name].apply(LITE)
    fields = dataclasses.asdict(recipe), dataclasses.asdict(LITE)
    changed = [
        key
        for part in ("transforms", "schedule")
        for key, value in fields[0][part].items()
        if value != fields[1][part][key]
    ]
    assert len(changed) == 1
    parts = ("transforms", "schedule")
    assert dataclasses.replace(recipe, **{part: getattr(LITE, part) for part in parts}) == LITE


def test_part_that_the_recipe_lacks_cannot_be_left_out() -> None:
    with pytest.raises(ClickException, match="'robust' has no such part: no random filters"):
        ablate.CHANGES["no-filters"].apply(ROBUST)
    with pytest.raises(ClickException, match="'reference' is not fine-tuned"):
        ablate.CHANGES["no-lesions"].apply(REFERENCE)


def test_record_says_what_was_changed_and_how_it_was_made(
    two_sources, toy_backbone, eager, tmp_path, monkeypatch
) -> None:
    recipe = dataclasses.replace(
        LITE,
        backbone="toy",
        preprocessing=dataclasses.replace(LITE.preprocessing, height=32, width=32),
        schedule=dataclasses.replace(
            LITE.schedule, epochs=1, batch=4, epoch_images=8, warmup_steps=1, rise=1, frozen_stages=1
        ),
        stress_tests=False,
    )
    monkeypatch.setitem(RECIPES, "lite", recipe)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        ablate.main, ["no-initial-share", "--data", str(two_sources), "--out", str(out), "--seed", "3"]
    )
    assert result.exit_code == 0, result.output
    record = json.loads((out / "crossval.json").read_text())
    assert record["change"] == "no share of the initial weights"
    assert record["creation"]["command"] == (
        "python -m scripts.ablate no-initial-share --data PATH --out PATH --recipe lite --cv sources --seed 3"
    )
    assert record["schedule"] == {
        "frozen_blocks": 1,
        "warm_steps": 1,
        "warm_rate": LITE.schedule.warmup_rate,
        "steps": 2,
        "rate": LITE.schedule.learning_rate,
        "rise": 1,
        "weight_decay": LITE.schedule.weight_decay,
        "largest_gradient": 1.0,
        "averaging": 0.99,
    }
    assert record["protocol"] == "sources"
    assert len(record["images"]["file"]) == 100
