"""LiteRT through its own Python interface; tensors are allocated again when the batch size changes."""

from __future__ import annotations


def open(model, threads):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=threads)
    entry, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    shape = None

    def run(batch):
        nonlocal shape
        if batch.shape != shape:
            interpreter.resize_tensor_input(entry, batch.shape)
            interpreter.allocate_tensors()
            shape = batch.shape
        interpreter.set_tensor(entry, batch)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    return run
