"""onnxruntime as an opponent: the problem's torch.nn module as a graph of ONNX's own RNN, GRU or LSTM."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from fusedrnn.bench import grid
from fusedrnn.bench.grid import Problem, Run

SIDE = "onnxruntime"
OPSET, IR_VERSION = 17, 8
GATES = {"rnn": "h", "gru": "zrn", "lstm": "iofg"}  # torch's names of the gates, in ONNX's order


def runs(problem: Problem) -> bool:
    """Whether it is installed, with onnx, and the problem is its own: float32 inference of dense rows on the CPU."""
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    dense = not (problem.packed or problem.tokens)
    return installed and dense and (problem.training, problem.device, problem.precision) == (False, "cpu", "ieee")


def inference(problem: Problem, x: torch.Tensor) -> Run:
    """The function that is timed, with as many threads as torch has now. They wait actively only within a call, so they
    take nothing from the side that comes next."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = graph(problem, tuple(x.shape)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = {"x": x.numpy()}
    return lambda: (torch.from_numpy(session.run(None, given)[0]),)


def graph(problem: Problem, shape: tuple[int, ...]) -> Any:
    """The onnx.ModelProto: x and y as torch.nn's, all states zero."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def add(op: str, *given: str, **attributes: Any) -> str:
        made = f"{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, given, [made], **attributes))
        return made

    def constant(name: str, values: torch.Tensor) -> str:
        constants.append(numpy_helper.from_array(values.numpy(), name))
        return name

    directions = {1: "forward", 2: "bidirectional"}[problem.directions]
    attributes = {"hidden_size": problem.sizes.H, "direction": directions}
    if problem.cell == "gru":
        attributes["linear_before_reset"] = 1
    x = "x"
    if "batch_first" in problem.parts:
        x = add("Transpose", x, perm=(1, 0, 2))
    for index, weights in enumerate(_weights(problem)):
        names = (constant(f"{name}{index}", values) for name, values in zip("WRB", weights, strict=True))
        x = add(problem.cell.upper(), x, *names, **attributes)  # [T, D, B, H]
        if problem.directions == 1:
            x = add("Squeeze", x, constant(f"axis{index}", torch.tensor([1])))
        else:
            x = add("Transpose", x, perm=(0, 2, 1, 3))
            x = add("Reshape", x, constant(f"shape{index}", torch.tensor([0, 0, -1])))
    if "batch_first" in problem.parts:
        x = add("Transpose", x, perm=(1, 0, 2))
    y_shape = (*shape[:2], problem.directions * problem.sizes.H)
    ends = ("x", shape), (x, y_shape)
    given, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in ends)
    made = helper.make_graph(nodes, problem.cell, [given], [y], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _weights(problem: Problem) -> list[tuple[torch.Tensor, ...]]:
    """W [D, G*H, I], R [D, G*H, H] and B [D, 2*G*H] of each layer, of the module that torch.nn runs."""
    held, names = grid.torch_module(problem).state_dict(), problem.spec.gates

    def stacked(kind: str, layer: int) -> torch.Tensor:
        found = []
        for suffix in ("", "_reverse")[: problem.directions]:
            gates = dict(zip(names, held[f"{kind}_l{layer}{suffix}"].chunk(len(names)), strict=True))
            found.append(torch.cat([gates[name] for name in GATES[problem.cell]]))
        return torch.stack(found)

    return [
        (
            stacked("weight_ih", layer),
            stacked("weight_hh", layer),
            torch.cat([stacked("bias_ih", layer), stacked("bias_hh", layer)], 1),
        )
        for layer in range(problem.layers)
    ]
