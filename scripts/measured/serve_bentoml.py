"""Define a service with adaptive batching: `bentoml serve serve_bentoml:Pictures`. Environment: MODEL."""

import bentoml
from classify_pictures import Model
from PIL.Image import Image


@bentoml.service
class Pictures:
    """Takes forms with a picture."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def classify(self, scan: list[Image]) -> list[list[float]]:
        """Return the probabilities of each picture."""
        return self.model.run([self.model.resize(picture) for picture in scan])
