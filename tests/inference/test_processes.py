"""A classifier works, or raises, in processes that did not load it: forked, spawned, pickled, copied, in gunicorn."""

from __future__ import annotations

import copy
import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mri_edge import Classifier, UsageError
from mri_edge.bundles.bundle import Bundle
from mri_edge.engines import engine_file, offered
from mri_edge.testing import FakeEngine

SCAN = str(Path(__file__).resolve().parents[2] / "examples" / "phantom-1.jpg")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
# Seconds. Each program ends within a second or two, and kills a child that hangs; this limit is the last resort.
LIMIT = 120

# Prints {action: how the child ended}. Two threads of the parent run the engine while it forks.
FORKING = """
import gc, json, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from mri_edge import Classifier, EngineError
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import engine_file, open_engine

engine, scan = sys.argv[1:]
parent, opens_after_fork = os.getpid(), getattr(engine_file(engine), "OPENS_AFTER_FORK", True)
classifier = Classifier.load("small", engine=engine, provider="cpu", threads=available_cpus())
alone = open_engine(classifier.bundle.folder / classifier.artifact.file, engine=engine, provider="cpu")
wanted = classifier.predict(scan).probabilities
begun = classifier.predict_batches([scan] * 3, batch_size=1)
next(begun)

def predict():
    if not opens_after_fork and os.getpid() != parent:
        try:
            classifier.predict(scan)
        except EngineError as error:
            assert "before this process was forked" in str(error), error
            return
        raise AssertionError("the engine opened, although its library does not survive a fork")
    assert classifier.predict(scan).probabilities == wanted
    assert [result.probabilities for result in classifier.predict_batches([scan] * 3)] == [wanted] * 3

def predict_and_close():
    predict()
    classifier.close()

def predict_in_threads():
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: predict(), range(8)))

def drop():
    global classifier, alone, begun
    del classifier, alone
    gc.collect()

def go_on_with_results():
    try:
        next(begun)
    except Exception as error:
        assert "another process" in str(error), error
    else:
        raise AssertionError("results of the parent's threads")

def run_the_engine_alone():
    for run in (lambda: alone.run(None), lambda: alone.run_outputs(None, [])):
        try:
            run()
        except EngineError as error:
            assert "before the process was forked" in str(error)
        else:
            raise AssertionError("the engine of the parent ran")
    alone.close()

def fork_again():
    predict()
    if (child := os.fork()) == 0:
        predict()
        sys.exit()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def close():
    classifier.close()

def nothing():
    pass

def end_of(child):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"

actions = [predict, predict_and_close, predict_in_threads, drop, go_on_with_results, run_the_engine_alone, fork_again]
busy = True
def work():
    while busy:
        classifier.predict(scan)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
ends = {}
for action in [*actions, close, nothing]:
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        action()
        sys.exit()  # not os._exit: every destructor must run
    ends[action.__name__] = end_of(child)
busy = False
for thread in threads:
    thread.join()
predict()  # the parent still works
print(json.dumps(ends))
"""

POOL = """
import json, multiprocessing, sys
from mri_edge import Classifier, EngineError
from mri_edge.device.cpu import available_cpus

engine, scan = sys.argv[1:]

def predict(path):
    try:
        return classifier.predict(path).probabilities
    except EngineError as error:
        return str(error)

if __name__ == "__main__":
    classifier = Classifier.load("small", engine=engine, provider="cpu", threads=available_cpus())
    wanted = classifier.predict(scan).probabilities
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(predict, [scan] * 6, chunksize=1).get(timeout=60)
        pool.close()
        pool.join()
    print(json.dumps([[wanted] * 6, found]))
"""

SPAWN = """
import json, multiprocessing, sys
from mri_edge import Classifier

engine, scan = sys.argv[1:]

def predict(classifier, path, answers):
    answers.put(classifier.predict(path).probabilities)

if __name__ == "__main__":
    classifier = Classifier.load("small", engine=engine, provider="cpu", threads=1)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=predict, args=(classifier, scan, answers))
    process.start()
    found = answers.get(timeout=60)
    process.join(60)
    print(json.dumps([process.exitcode, found == classifier.predict(scan).probabilities]))
"""

APPLICATION = """
import json, os
from mri_edge import Classifier, EngineError
from mri_edge.device.cpu import available_cpus

classifier = Classifier.load("small", engine=os.environ["TESTED_ENGINE"], provider="cpu", threads=available_cpus())
before = classifier.predict(os.environ["TESTED_SCAN"]).label

def application(environ, start_response):
    try:
        answer = classifier.predict(os.environ["TESTED_SCAN"]).label == before
    except EngineError as error:
        answer = str(error)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), answer]).encode()]
"""


@pytest.fixture(params=offered())
def engine(request) -> str:
    if reason := engine_file(request.param).missing():
        pytest.skip(reason)
    if not any(
        artifact.file.endswith(engine_file(request.param).SUFFIXES)
        for artifact in Bundle.open("small").manifest.artifacts
    ):
        pytest.skip(f"the embedded model has no artifact for {request.param}")
    return request.param


def opens_after_fork(engine: str) -> bool:
    return getattr(engine_file(engine), "OPENS_AFTER_FORK", True)


def run(folder: Path, program: str, *arguments: str):
    path = folder / "program.py"
    path.write_text(program)
    command = [sys.executable, str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@forks
def test_a_forked_child_predicts_or_raises_and_always_ends(engine, tmp_path):
    ends, errors = run(tmp_path, FORKING, engine, SCAN)
    assert set(ends.values()) == {0}, f"{ends}\n{errors}"
    assert len(ends) == 9


@forks
def test_a_pool_of_forked_processes_predicts(engine, tmp_path):
    wanted, found = run(tmp_path, POOL, engine, SCAN)[0]
    if opens_after_fork(engine):
        assert found == wanted
    else:
        assert all("before this process was forked" in answer for answer in found)


def test_a_classifier_can_be_passed_to_a_spawned_process(engine, tmp_path):
    assert run(tmp_path, SPAWN, engine, SCAN)[0] == [0, True]


@forks
def test_gunicorn_workers_predict_with_a_preloaded_classifier(engine, tmp_path):
    pytest.importorskip("gunicorn", reason="gunicorn (group 'dev') is not installed")
    (tmp_path / "served.py").write_text(APPLICATION)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--graceful-timeout", "90"]
    command += ["--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", str(tmp_path), "served:application"]
    environment = os.environ | {"TESTED_ENGINE": engine, "TESTED_SCAN": SCAN}
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        answers: dict[int, list[bool | str]] = {}
        until = time.monotonic() + 40
        while len(answers) < 2 or min(map(len, answers.values())) < 2:  # both workers answer, and each again
            assert time.monotonic() < until, answers
            assert server.poll() is None, server.stderr.read()
            try:
                pid, answer = _ask(port)
            except (ConnectionError, TimeoutError):
                time.sleep(0.05)
                continue
            answers.setdefault(pid, []).append(answer)
        for answer in chain.from_iterable(answers.values()):
            assert answer is True if opens_after_fork(engine) else "before this process was forked" in answer
        assert server.pid not in answers
        server.terminate()
        errors = server.communicate(timeout=30)[1]  # a worker that hangs would be killed after 90 s
        assert server.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        # A killed master leaves its workers running. They are in its process group, which the new session made.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stderr.close()


def _ask(port: int) -> tuple[int, bool | str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/")
        pid, answer = json.loads(connection.getresponse().read())
        return pid, answer
    finally:
        connection.close()


def test_a_pickle_contains_the_arguments_of_load_and_not_the_model(tiny_bundle):
    with Classifier.load(tiny_bundle, threads=1, provider="cpu") as classifier:
        content = pickle.dumps(classifier)
        wanted = classifier.predict(SCAN)
    assert len(content) < 1000  # neither the model nor its manifest
    with pickle.loads(content) as again:  # noqa: S301 (written above)
        assert again.predict(SCAN).probabilities == wanted.probabilities
        assert again.engine.threads == 1


def test_a_classifier_of_an_opened_bundle_can_be_pickled(tiny_bundle):
    with Classifier.load(Bundle.open(tiny_bundle), threads=1) as classifier:
        again = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (written here)
        assert again.bundle == classifier.bundle
        assert again.predict(SCAN).label == classifier.predict(SCAN).label
        again.close()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_has_its_own_engine(tiny_bundle, copied):
    with Classifier.load(tiny_bundle, threads=1) as classifier:
        other = copied(classifier)
        other.close()
        assert classifier.predict(SCAN).label


def test_a_classifier_that_cannot_be_pickled_raises_a_usage_error(tiny_bundle):
    classifier = Classifier.load(tiny_bundle, threads=1)
    made = Classifier(classifier.bundle, classifier.artifact, FakeEngine((128, 128, 3)))
    with pytest.raises(UsageError, match=r"cannot be pickled.*opened engine.*Classifier\.load"):
        pickle.dumps(made)
    classifier.close()
    with pytest.raises(UsageError, match=r"cannot be pickled.*closed"):
        pickle.dumps(classifier)


@forks
def test_a_forked_child_refuses_a_provider_other_than_its_parents(tiny_bundle, monkeypatch):
    """A GPU that does not come up after a fork must not become the CPU in silence."""
    from mri_edge import EngineError
    from mri_edge.engines import _fork

    with Classifier.load(tiny_bundle, threads=1) as classifier:
        classifier.engine.provider = "CUDAExecutionProvider"
        monkeypatch.setattr(classifier.engine, "run_outputs", _fork._refuse)  # as in a forked child
        with pytest.raises(EngineError, match="runs it on CUDAExecutionProvider, but in this process CPU"):
            classifier.predict(np.zeros((99, 99), np.uint8))
