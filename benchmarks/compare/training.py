"""Measure a step of our fine-tuning beside Keras' own ``fit`` in float32, with the same network, optimizer and views.

    python -m benchmarks.compare.training             # 10 to 25 quiet minutes; writes build/bench/training.json
    python -m benchmarks.compare.training --record    # writes the committed record

Whole processes run in turn (A B, A B, …). A step includes making its views, which our loop does while it computes.
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.processes import SCANS, output, script
from benchmarks.records.store import facts, parse_arguments, save
from mri_edge.benchmarking.benchmark import spread
from mri_edge.benchmarking.throttle import Watch
from mri_edge.train.loops.finetune import fast_precision
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.recipes.base import FineTuning
from mri_edge.train.recipes.registry import find_recipe

ROUNDS, BUSY_ROUNDS = 5, 2
RECIPES = {"robust": 12, "lite": 60}  # steps of a process
WAYS = ("mri-edge", "keras")


def seconds(way: str, recipe: str, steps: int) -> float:
    """Return the seconds of a step in a process of its own."""
    return float(output(script("train_steps.py", way, recipe, steps, *SCANS))[-1])


def main() -> None:
    """Measure all recipes in turn, and write the record."""
    options = parse_arguments(__doc__, "fewer rounds")
    rounds, watch = BUSY_ROUNDS if options.busy else ROUNDS, Watch()
    rows = {}
    for name, steps in RECIPES.items():
        recipe = find_recipe(name)
        assert isinstance(recipe.schedule, FineTuning)
        found = [[seconds(way, name, steps) for way in WAYS] for _ in range(rounds)]
        ours, keras = zip(*found, strict=True)
        rows[name] = {
            "precision": fast_precision(find_backbone(recipe.backbone)),
            "batch": recipe.schedule.batch,
            "epoch_steps": recipe.schedule.epoch_steps,
            "seconds": asdict(spread(ours)),
            "keras_seconds": asdict(spread(keras)),
            "times_faster": asdict(spread(theirs / own for own, theirs in found)),
        }
        print(name, rows[name], flush=True)
    record = facts("tensorflow", "keras") | {"busy": options.busy, "rounds": rounds}
    save("training", record | {"disturbed": list(watch.marks()), "rows": rows}, committed=options.record)


if __name__ == "__main__":
    main()
