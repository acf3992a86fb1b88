"""Writes the ONNX file of a run, on request, and checks it by ONNX Runtime. Needs Keras on TensorFlow."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np

from dr_keras.backend import keras_defaults
from dr_keras.errors import MissingPackage
from dr_keras.extras import how_to_install
from dr_keras.heads import TRAINED, GeneralHead
from dr_keras.model.general_head import with_general_head

MODULES = ("onnx", "onnxruntime", "tf2onnx")


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
    if general is None:
        model = keras.Model(network.input, {TRAINED: network.output})  # the name of the output
    else:
        model = with_general_head(network, general)
    signature = [keras.InputSpec(shape=(None, *network.input_shape[1:]), dtype="uint8", name="image")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)  # Keras asks whether it is there
        model.export(str(file), format="onnx", verbose=False, input_signature=signature)
    _replace_erfc(file)


def _replace_erfc(file: Path) -> None:
    """Rewrites 1 - Erf(x) for Erfc(x), which TensorFlow's exact GELU becomes, and which ONNX does not have."""
    import onnx

    model = onnx.load(str(file))
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
    onnx.save(model, str(file))


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
        return self._session.run([self._head], {"image": images})[0]
