"""The operations of a model as TensorIR, generated for a shape and a target. Needs the extra `tvm`."""
