"""The record ``teacher.json`` in the bundle of a distilled model: its teacher's answers for the test images.

Training writes it, and export compares every artifact of the student with it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from mri_edge.bundles.decode import parse, read
from mri_edge.errors import ManifestError

TEACHER = "teacher.json"


@dataclass(frozen=True)
class TeacherAnswers:
    """Answers for the test images, in the order of the split.

    Attributes
    ----------
    teachers
        Name, recipe and seed of each teacher.
    called
        Label index of each image, chosen with the teacher's own threshold.
    probabilities
        One row per image, one value per label.
    """

    teachers: tuple[str, ...]
    called: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...]

    def to_json(self) -> str:
        """JSON text that ends with a line feed."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = TEACHER) -> TeacherAnswers:
        """Read what ``to_json`` wrote. Raises ManifestError, which names ``origin``, if it is something else."""
        answers = read(cls, parse(text, origin), origin)
        if len(answers.called) != len(answers.probabilities):
            raise ManifestError(f"{origin}: {len(answers.called)} labels, {len(answers.probabilities)} probabilities")
        return answers
