"""SavedModels that reach for files or memory are refused before TensorFlow opens them."""

from __future__ import annotations

import pytest

tf = pytest.importorskip("tensorflow", reason="needs the extra 'export'")
pytest.importorskip("tf2onnx", reason="needs the extra 'export'")

from mri_edge.errors import BundleError
from mri_edge.export.sources.saved_model import load_saved_model


class Reads(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def serve(self, pixels):
        text = tf.io.read_file("/etc/passwd")
        return tf.reduce_mean(pixels, (1, 2))[:, :2] + tf.cast(tf.strings.length(text), tf.float32)


class Writes(tf.Module):
    def __init__(self, marker):
        super().__init__()
        self.marker = str(marker)

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def serve(self, pixels):
        with tf.control_dependencies([tf.io.write_file(self.marker, "x")]):
            return tf.identity(tf.reduce_mean(pixels, (1, 2))[:, :2])


class Saves(tf.Module):
    """A module that writes a file with the operation that every SavedModel uses for its variables."""

    def __init__(self, marker):
        super().__init__()
        self.marker = str(marker)

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def serve(self, pixels):
        wrote = tf.raw_ops.SaveV2(prefix=self.marker, tensor_names=["x"], shape_and_slices=[""], tensors=[pixels])
        with tf.control_dependencies([wrote]):
            return tf.identity(tf.reduce_mean(pixels, (1, 2))[:, :2])


class Looks(tf.Module):
    """A module that reads a word list as soon as it is loaded."""

    def __init__(self, words):
        super().__init__()
        words.write_text("a\nb\n", encoding="utf-8")
        index = tf.lookup.TextFileIndex
        lines = tf.lookup.TextFileInitializer(str(words), tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER)
        self.table = tf.lookup.StaticHashTable(lines, -1)

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def serve(self, pixels):
        return tf.reduce_mean(pixels, (1, 2))[:, :2] + tf.cast(self.table.lookup(tf.constant("a")), tf.float32)


class Grows(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def serve(self, pixels):
        return tf.reduce_mean(pixels, (1, 2))[:, :2] + tf.zeros(4)[0]


class Reaches(tf.Module):
    """A module with an operation that TensorFlow declares stateless although it reaches outside the graph."""

    def __init__(self, name, options):
        super().__init__()
        self.reach = lambda: getattr(tf.raw_ops, name)(**options)

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.float32)])
    def serve(self, pixels):
        with tf.control_dependencies([self.reach()]):
            return tf.identity(tf.reduce_mean(pixels, (1, 2))[:, :2])


REACHING = {
    "Abort": {"error_msg": "", "exit_without_error": True},
    "ImmutableConst": {"dtype": tf.float32, "shape": (1,), "memory_region_name": "/etc/passwd"},
    "EncodeProto": {
        "sizes": [[1]],
        "values": [tf.constant([[1]])],
        "field_names": ["a"],
        "message_type": "a",
        "descriptor_source": "/etc/passwd",
    },
}


def saved(module, folder):
    tf.saved_model.save(module, str(folder), signatures={"serve": module.serve})
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: Reads(), "'ReadFile' may do more than compute"),
        (lambda path: Writes(path / "marker"), "'WriteFile' may do more than compute"),
        (lambda path: Saves(path / "marker"), "writes or reads files"),
    ],
    ids=["reads", "writes", "saves"],
)
def test_it_is_refused(make, words, tmp_path):
    folder = saved(make(tmp_path), tmp_path / "model")
    with pytest.raises(BundleError, match=words):
        load_saved_model(folder, 32, 32)
    assert not list(tmp_path.glob("marker*"))


def test_a_word_list_is_refused(tmp_path):
    folder = saved(Looks(tmp_path / "words.txt"), tmp_path / "model")
    with pytest.raises(BundleError, match="may do more than compute"):
        load_saved_model(folder, 32, 32)


@pytest.mark.parametrize("name", REACHING)
def test_an_operation_that_tensorflow_declares_stateless_may_be_refused(name, tmp_path):
    folder = saved(Reaches(name, REACHING[name]), tmp_path / "model")
    with pytest.raises(BundleError, match=f"'{name}' may do more than compute"):
        load_saved_model(folder, 32, 32)


def test_a_constant_of_gigabytes_is_refused(tmp_path):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    folder = saved(Grows(), tmp_path / "model")
    path = folder / "saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    node = model.meta_graphs[0].graph_def.node.add()
    node.op, node.name = "Const", "large"
    node.attr["dtype"].type = node.attr["value"].tensor.dtype = 1
    node.attr["value"].tensor.float_val.append(0.0)
    for length in (40_000, 40_000):
        node.attr["value"].tensor.tensor_shape.dim.add().size = length
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="unpacks to 6,4"):
        load_saved_model(folder, 32, 32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file saved_model.pb"),
        (b"", "holds no model|damaged|no functions|no SavedModel"),
        (b"\xff" * 64, "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
)
def test_a_broken_model_is_refused_with_a_message(content, words, tmp_path):
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    with pytest.raises(BundleError, match=words):
        load_saved_model(tmp_path, 32, 32)
