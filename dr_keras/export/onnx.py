"""Writes the ONNX file of a run, on request, and checks it by ONNX Runtime. Needs Keras on TensorFlow."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from dr_keras.backend import keras_defaults
from dr_keras.errors import MissingPackage
from dr_keras.extras import how_to_install
from dr_keras.heads import GENERAL, TRAINED, GeneralHead
from dr_keras.model.general_head import with_general_head

if TYPE_CHECKING:
    import onnx

MODULES = ("onnx", "onnxruntime", "tf2onnx")
INPUT = "image"
OPSET = 18


def require_onnx() -> None:
    """Checks that the packages are installed.

    Raises:
        MissingPackage: One is not.
    """
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        raise MissingPackage(f"ONNX needs {', '.join(missing)}; {how_to_install(missing[0])}")


@keras_defaults()
def write_onnx(network: keras.Model, general: GeneralHead | None, file: Path) -> None:
    """Writes an ONNX file: `image`, (B, H, W, 3) uint8 -> `trained` and, with a general head, `general`.

    Args:
        network: The embedding network, in float32.
        general: The run's general head, if it has one.
        file: The file to write.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    model = network if general is None else with_general_head(network, general)
    names = [TRAINED] if general is None else [TRAINED, GENERAL]

    def serve(image: tf.Tensor) -> list[tf.Tensor]:
        vectors = model(image, training=False)
        return [vectors] if general is None else [vectors[name] for name in names]

    # Frozen here, because tf2onnx makes inputs of constants that a layer has computed, such as positions.
    pixels = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8, INPUT)
    frozen = convert_variables_to_constants_v2(tf.function(serve).get_concrete_function(pixels))
    outputs = [tensor.name for tensor in frozen.outputs]
    converted, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(), input_names=[frozen.inputs[0].name], output_names=outputs, opset=OPSET
    )
    _replace_erfc(converted)
    _rename(converted, dict(zip([frozen.inputs[0].name, *outputs], [INPUT, *names], strict=True)))
    onnx.save(converted, str(file))


def _rename(model: "onnx.ModelProto", names: Mapping[str, str]) -> None:
    """Renames inputs and outputs of the graph."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _replace_erfc(model: "onnx.ModelProto") -> None:
    """Puts 1 - Erf(x) in place of Erfc(x), which TensorFlow's exact GELU becomes, and which ONNX does not have."""
    import onnx

    nodes = list(model.graph.node)
    if not any(node.op_type == "Erfc" for node in nodes):
        return
    one = "one_for_erfc"
    model.graph.initializer.append(onnx.helper.make_tensor(one, onnx.TensorProto.FLOAT, [], [1.0]))
    del model.graph.node[:]
    for node in nodes:
        if node.op_type != "Erfc":
            model.graph.node.append(node)
            continue
        inner = f"{node.output[0]}_erf"
        model.graph.node.append(onnx.helper.make_node("Erf", node.input, [inner], name=f"{node.name}_erf"))
        model.graph.node.append(onnx.helper.make_node("Sub", [one, inner], node.output, name=node.name))


class OnnxEmbedder:
    """Embeds with an ONNX file, by ONNX Runtime on the CPU.

    Args:
        file: The ONNX file.
        head: TRAINED or GENERAL, see `dr_keras.heads`.
    """

    def __init__(self, file: Path, head: str = TRAINED) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self._head = head

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run([self._head], {INPUT: images})[0]
