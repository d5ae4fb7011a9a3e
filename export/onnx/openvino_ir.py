"""Convert an ONNX model to OpenVINO's intermediate representation (IR), as one file.

IR is two files, a description in XML and the weights. They are stored, not compressed, in a ZIP archive, because an
artifact of a bundle is one file. Unpacked, they are what OpenVINO's tools and servers read.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from mri_edge.engines._archive import write_parts
from mri_edge.engines.openvino import IR_FILES
from mri_edge.errors import ConversionError, first_line

_NUMBERED = re.compile(r"\w+_\d+")  # names that OpenVINO makes up; the number counts the nodes of the process


def to_openvino(content: bytes) -> bytes:
    """The IR of an ONNX file, with float weights as they are: OpenVINO's default would round them to float16.

    Raises
    ------
    ConversionError
        OpenVINO does not know an operation of the model.
    """
    import openvino

    try:
        model = openvino.Core().read_model(content)
        for number, node in enumerate(model.get_ordered_ops()):
            if _NUMBERED.fullmatch(node.get_friendly_name()):
                node.set_friendly_name(f"{node.get_type_name()}_{number}")
        with tempfile.TemporaryDirectory() as folder:
            openvino.save_model(model, str(Path(folder) / IR_FILES[0]), compress_to_fp16=False)
            parts = [(Path(folder) / name).read_bytes() for name in IR_FILES]
    except RuntimeError as error:
        raise ConversionError(
            f"OpenVINO {openvino.__version__} cannot convert this model: {first_line(error)}",
            "Choose other formats with --formats",
        ) from error
    return write_parts(dict(zip(IR_FILES, parts, strict=True)))
