"""The small recipe from a data folder and a teacher to a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from mri_edge.authoring.teacher import TEACHER
from mri_edge.authoring.writer import check_target
from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import DataError
from mri_edge.train.data.folder import select
from mri_edge.train.loops.checkpoint import check_space, work_folder
from mri_edge.train.loops.distil import open_pool
from mri_edge.train.loops.progress import step_progress
from mri_edge.train.models.small_cnn import ARCHITECTURE
from mri_edge.train.recipes.base import Recipe
from mri_edge.train.recipes.distilled import POOL_VIEWS, BundleTeacher, draw_pool, pool_bytes, train_small
from mri_edge.train.recipes.robust import choose_roles, collect, store_bytes

from .bundle_finish import finish, rows_of
from .pipeline import Trained

_BUNDLE_BYTES = 5_000_000  # a student is small


def train_small_bundle(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    teachers: Sequence[str],
    seed: int,
    name: str = "small",
    positive: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Distil a small network from ``teachers`` on the scans in ``data`` and write a bundle at ``out``.

    Parameters
    ----------
    teachers
        Bundle folders or names of embedded models, trained on the same split of the same data; the student
        learns their mean answer.
    resume
        Take up the teachers' answers of a training that was cut off, instead of asking anew.
    say
        Takes a line for each thing that takes long.

    Raises
    ------
    DataError, BundleError, OutputError
        The data, a teacher or the place for the result are unfit; all said before training.
    """
    check_target(out, overwrite=overwrite)
    selection = select(data, positive)
    scans, labels = selection.scans, selection.labels
    with closing(BundleTeacher([Bundle.open(one) for one in teachers], labels, recipe.preprocessing)) as teacher:
        # The pool takes longest and does not depend on how the student trains: it is what --resume takes up.
        facts = [repr(recipe.preprocessing), recipe.batch, POOL_VIEWS, seed, *teacher.sha256, *selection.facts()]
        work = work_folder(out, facts, overwrite=overwrite, resume=resume)
        pool_wanted = pool_bytes(recipe) if open_pool(work) is None else 0
        check_space(work, store_bytes(scans, recipe.preprocessing) + pool_wanted + _BUNDLE_BYTES)
        say(f"reading {len(scans)} scans")
        collection = collect(scans, recipe.preprocessing, store=work)
        split = choose_roles(collection)
        try:
            teacher.check_split(split)
        except DataError:
            shutil.rmtree(work, ignore_errors=True)  # nothing that a resumed training would take up
            raise
        train, validation, test = rows_of(split, collection)
        with step_progress("asking the teacher") as report:
            pool = draw_pool(collection, train, teacher, recipe, work, labels=labels, seed=seed, report=report)
        with step_progress("distilling", every=len(pool.answers) // recipe.batch) as report:
            trained = train_small(collection, validation, pool, recipe, labels=labels, seed=seed, report=report)
        say(f"scoring {len(test)} test images")
        weights, answers = teacher.origin(), teacher.answers(collection.pixels[test])
    finished = finish(
        out,
        trained,
        collection,
        split,
        labels=labels,
        recipe=recipe,
        weights=weights,
        seed=seed,
        name=name,
        overwrite=overwrite,
        architecture=ARCHITECTURE,
        split_name="test kept apart by near-duplicates, validation by group",
        documents={TEACHER: answers.to_json()},
    )
    shutil.rmtree(work, ignore_errors=True)
    return finished
