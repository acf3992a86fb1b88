"""The optimizer of the default recipe: Muon (Jordan et al. 2024), extended to convolutions."""

import math
from typing import Any

import keras
from keras import ops

UPDATE_RMS = 0.2  # root mean square of an update at rate 1; close to AdamW's, so that similar rates suit both
MAX_SIDE = 2048  # of the smaller side of a matrix: the cost of an update grows with its cube


@keras.saving.register_keras_serializable(package="dr_keras")
class Muon(keras.optimizers.Muon):
    """`keras.optimizers.Muon` that orthogonalizes the updates of convolution kernels, too.

    A kernel (h, w, C, D) is treated as the matrix (hwC, D) that it acts as. Keras's own Muon leaves everything but
    matrices to AdamW, which is most of a ConvNet. AdamW is used here as well for biases, normalization and class
    proxies (1-D and 3-D); for depthwise kernels (h, w, C, 1), which correspond to no such matrix; and for matrices
    whose width and height both exceed 2,048, as in AlexNet and VGG, because their orthogonal update takes 20 times as
    long as the step itself on a CPU.

    Args:
        learning_rate: Learning rate of all variables; the root mean square of an update is about 0.2 times this.
        weight_decay: Decoupled weight decay of all variables.
        iterate_dtype: Dtype of the products with whole kernels; bfloat16 is accurate enough, and faster where the
            hardware supports it.
        momentum: Momentum of the gradients.
        ns_steps: Number of Newton-Schulz iterations.

    Further arguments are those of `keras.optimizers.Muon`, except that `exclude_layers`, `exclude_embeddings` and
    `rms_rate` have no effect.
    """

    def __init__(
        self,
        learning_rate: Any = 6e-3,
        weight_decay: float = 0.05,
        iterate_dtype: str = "float32",
        momentum: float = 0.9,
        ns_steps: int = 3,
        **kwargs: Any,
    ) -> None:
        kwargs = {"adam_weight_decay": weight_decay, "exclude_embeddings": False, "name": "muon"} | kwargs
        super().__init__(learning_rate, weight_decay=weight_decay, momentum=momentum, ns_steps=ns_steps, **kwargs)
        self.iterate_dtype = iterate_dtype

    def _should_use_adamw(self, variable: keras.Variable) -> bool:
        shape = variable.shape
        return len(shape) not in (2, 4) or shape[-1] == 1 or min(math.prod(shape[:-1]), shape[-1]) > MAX_SIDE

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """Returns approximately the orthogonal matrix nearest to `x`: (h, w, C, D) -> (h, w, C, D).

        Each iteration multiplies a matrix X by a polynomial p(G) of its Gram matrix G = X^T X, after which that is
        p(G) G p(G), as the three commute. So only the smaller side's square matrices are iterated, in float32; X itself
        takes part in two products, the first and the last, whatever the number of iterations.
        """
        matrix = ops.reshape(x, (-1, x.shape[-1]))  # (hwC, D)
        matrix = ops.cast(matrix / (ops.norm(matrix) + 1e-7), self.iterate_dtype)  # no singular value above 1
        tall = matrix.shape[0] > matrix.shape[1]
        turned = ops.transpose(matrix)
        gram = ops.cast(ops.matmul(turned, matrix) if tall else ops.matmul(matrix, turned), "float32")
        factor = None
        for step in range(steps):
            square = ops.matmul(gram, gram)
            polynomial = self.muon_a * ops.eye(gram.shape[0]) + self.muon_b * gram + self.muon_c * square
            factor = polynomial if factor is None else ops.matmul(factor, polynomial)
            if step < steps - 1:
                gram = ops.matmul(ops.matmul(polynomial, gram), polynomial)
        factor = ops.cast(factor, self.iterate_dtype)
        nearest = ops.matmul(matrix, factor) if tall else ops.matmul(factor, matrix)
        return ops.reshape(ops.cast(nearest, x.dtype), x.shape)

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        """Keras's own, with one learning rate for all variables instead of a schedule in the graph for each."""
        rate = ops.cast(self.learning_rate, "float32")
        for variable in variables:
            decay = self.adam_weight_decay if self._should_use_adamw(variable) else self.weight_decay
            if decay is not None and self._use_weight_decay(variable):
                factor = ops.cast(decay, variable.dtype)
                variable.assign(variable - variable * factor * ops.cast(rate, variable.dtype))

    def lr_adjust(self, x: Any) -> Any:
        """Scales an orthogonal update to the root mean square `UPDATE_RMS`, as in Liu et al. 2025."""
        return x * (math.sqrt(max(math.prod(x.shape[:-1]), x.shape[-1])) * UPDATE_RMS)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"iterate_dtype": self.iterate_dtype}
