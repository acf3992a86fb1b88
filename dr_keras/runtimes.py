"""The names of the runtimes that embed images."""

RUNTIMES = ("auto", "litert", "openvino", "openvino_bfloat16", "saved_model", "keras")
