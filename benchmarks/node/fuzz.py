"""Send mutated data sets and mutated PDUs to a node: it must stay up, and its memory must not grow.

``python -m benchmarks.node.fuzz --datasets 500 --streams 2000``; the tests run a smaller one.
"""

from __future__ import annotations

import argparse
import random
import socket
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from benchmarks.node.peers import MR, NodeProcess, associate, instance, make_bundle, wait_for


def mutate(content: bytes, rng: random.Random, first: int) -> bytes:
    """Change, remove or insert some bytes, most of them among the ``first``."""
    mutated = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        position = rng.randrange(min(first, len(mutated)) if rng.random() < 0.8 else len(mutated))
        action = rng.random()
        if action < 0.6:
            mutated[position] = rng.randrange(256)
        elif action < 0.8:
            del mutated[position : position + rng.randrange(1, 9)]
        else:
            mutated[position:position] = rng.randbytes(rng.randrange(1, 9))
    return bytes(mutated)


def encoded(series: int, number: int) -> bytes:
    """Return a data set as it is sent."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, instance(series, number, size=32))
    return stream.getvalue()


def send_datasets(node: NodeProcess, count: int, rng: random.Random) -> int:
    """Send mutated data sets, each with an identifier of its own. Returns how many were acknowledged."""
    from pynetdicom.dimse_primitives import C_STORE

    association = associate(node.port)
    (context,) = association.accepted_contexts
    association._reactor_checkpoint.clear()  # otherwise the thread of the association takes the responses
    wait_for(lambda: association._is_paused, "the association is paused")
    acknowledged = 0
    for number in range(count):
        request = C_STORE()
        request.MessageID, request.Priority = number % 65535 + 1, 2
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MR, f"2.25.9{number:06d}"
        request.DataSet = BytesIO(mutate(encoded(number // 20, number), rng, 900))
        association.dimse.send_msg(request, context.context_id)
        _, response = association.dimse.get_msg(block=True)
        acknowledged += response is not None and response.Status == 0
    association._reactor_checkpoint.set()
    association.release()
    return acknowledged


def conversation(port: int) -> bytes:
    """Return everything that a sender of one small instance sends."""
    from pynetdicom import AE, evt

    sent: list[bytes] = []
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(MR)
    handlers = [(evt.EVT_DATA_SENT, lambda event: sent.append(bytes(event.data)))]
    association = ae.associate("127.0.0.1", port, ae_title="MRIEDGE", evt_handlers=handlers)
    association.send_c_store(instance(9000, 0, size=16))
    association.release()
    return b"".join(sent)


def send_stream(port: int, content: bytes) -> None:
    """Send bytes, and wait until the node closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass
        except OSError:
            pass


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if the node stayed up, kept what it acknowledged, and did not grow by more than a fifth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        node = NodeProcess(root, make_bundle(root / "bundle"), "--settle", 0.5, "--timeout", 2)
        node.start()
        acknowledged = send_datasets(node, options.datasets, rng)
        wait_for(lambda: not list((node.spool / "incoming").glob("*.dcm")), "instances are sorted", 300)
        wait_for(lambda: not list((node.spool / "series").iterdir()), "every series has an answer", 300)
        stream = conversation(node.port)
        before = node.memory()
        for _ in range(options.streams):
            send_stream(node.port, mutate(stream, rng, 400))
        grown = node.memory() / before
        kept = len(node.files())
        code = node.end()
        log = node.log.read_text()
        answers = node.answers()
    print(f"{acknowledged} of {options.datasets} mutated data sets acknowledged, {kept} instances kept")
    print(f"{len(answers)} answers; {options.streams} mutated streams; memory times {grown:.2f}; exit code {code}")
    faults = [line for line in log.splitlines() if "Traceback" in line or "a fault of mri-edge" in line]
    print(*faults, sep="\n", end="\n" if faults else "")
    return int(code != 0 or kept < acknowledged or grown > 1.2 or bool(faults))


if __name__ == "__main__":
    sys.exit(main())
