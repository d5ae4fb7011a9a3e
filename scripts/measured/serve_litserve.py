"""Serve a model with LitServe and dynamic batching. Arguments: PORT. Environment: MODEL."""

import sys

import litserve
from classify_pictures import Model


class Pictures(litserve.LitAPI):
    """Takes a form with a picture."""

    def setup(self, device: str) -> None:
        """Open the model."""
        self.model = Model()

    def decode_request(self, request):
        """Return the tensor of a picture."""
        return self.model.decode(request["scan"].file.read())

    def batch(self, inputs: list) -> list:
        """Keep the tensors as a list, which the model stacks."""
        return inputs

    def predict(self, batch: list) -> list:
        """Run the model."""
        return self.model.run(batch)

    def unbatch(self, output: list) -> list:
        """Return the answer of each request."""
        return output

    def encode_response(self, output: list) -> dict:
        """Return the answer."""
        return {"probabilities": output}


if __name__ == "__main__":
    api = Pictures(max_batch_size=64, batch_timeout=0.005)
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[1]), generate_client_file=False, log_level="error")
