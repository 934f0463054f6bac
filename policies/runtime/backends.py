"""Engines that run ONNX graphs: OpenVINO, or ONNX Runtime. Each is imported only when it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from policies.runtime.errors import BundleError
from policies.runtime.graphs import Array, GraphRunner, TensorType

Backend = Literal["openvino", "onnxruntime"]


def compile_graph(backend: Backend, model: bytes, threads: int, name: str) -> GraphRunner:
    """A graph, ready to run.

    Args:
        backend: the engine.
        model: an ONNX file.
        threads: CPU threads to run it with.
        name: of the graph, for errors.

    Raises:
        BundleError: the engine cannot use the graph.
        ValueError: no such backend.
        ModuleNotFoundError: the engine is not installed.
    """
    if backend == "openvino":
        return OpenVinoGraph(model, threads, name)
    if backend == "onnxruntime":
        return OnnxRuntimeGraph(model, threads, name)
    raise ValueError(f"no backend {backend!r}: there are {', '.join(get_args(Backend))}")


class OpenVinoGraph(GraphRunner):
    """A graph compiled by OpenVINO for the CPU, in fp32, for the shortest single inference."""

    def __init__(self, model: bytes, threads: int, name: str) -> None:
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        try:
            core = _openvino_core()
            compiled = core.compile_model(core.read_model(model), "CPU", options)
            self._request = compiled.create_infer_request()
            self.inputs = {port.get_node().get_friendly_name(): _port_type(port) for port in compiled.inputs}
            self.outputs = tuple(_port_type(port) for port in compiled.outputs)
        except (RuntimeError, UnicodeDecodeError) as error:  # the latter of a damaged name; openvino raises no others
            raise BundleError(f"{name}.onnx: OpenVINO cannot use it ({_reason(error)})") from None

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        results = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        return [np.array(value) for value in results.values()]

    def operators(self) -> int:
        """How many operators one call runs, after fusion; constants and views (a reshape, a split) run nothing."""
        found = self._request.get_compiled_model().get_runtime_model().get_ops()
        implementations = [operator.get_rt_info()["primitiveType"].astype(str) for operator in found]
        return sum(not name.startswith(("unknown", "undef")) for name in implementations)


class OnnxRuntimeGraph(GraphRunner):
    """A graph run by ONNX Runtime on the CPU."""

    def __init__(self, model: bytes, threads: int, name: str) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "the engine onnxruntime is not installed: pip install 'visuomotor[onnxruntime]'"
            ) from None
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong comes as an exception
        kinds = vars(errors).values()
        refusals: list[type[Exception]] = [k for k in kinds if isinstance(k, type) and issubclass(k, Exception)]
        refusals.append(UnicodeDecodeError)  # of a damaged name
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self.inputs = {value.name: _value_type(value.shape, value.type) for value in self._session.get_inputs()}
            self.outputs = tuple(_value_type(value.shape, value.type) for value in self._session.get_outputs())
        except tuple(refusals) as error:
            raise BundleError(f"{name}.onnx: ONNX Runtime cannot use it ({_reason(error)})") from None

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        return self._session.run(None, dict(inputs))


@functools.cache
def _openvino_core():  # type: ignore[no-untyped-def]  # noqa: ANN202 - openvino is imported lazily
    """The only one of this process: each replaces the stack that signals are handled on, and several leave a freed one
    behind when they go (seen with OpenVINO 2026.4: the next SIGTERM was a segmentation fault)."""
    import openvino

    return openvino.Core()


def _port_type(port) -> TensorType:  # type: ignore[no-untyped-def]  # noqa: ANN001 - openvino is imported lazily
    """Shape and dtype of an OpenVINO port; -1 for a size that is not fixed."""
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())
    return TensorType(shape, port.get_element_type().to_dtype().name)


def _value_type(shape: list[int | str | None], kind: str) -> TensorType:
    """Shape and dtype of an ONNX Runtime value, whose `kind` reads `tensor(float)`."""
    dtype = kind.removeprefix("tensor(").removesuffix(")")
    sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
    return TensorType(sizes, {"float": "float32", "double": "float64"}.get(dtype, dtype))


def _reason(error: Exception) -> str:
    """What an engine says, without where in its own source it says it."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), type(error).__name__)
