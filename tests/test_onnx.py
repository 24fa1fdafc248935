"""ONNX: what torch exports of `to_torch()` and of a model converted back is run by onnxruntime, beside the modules."""

import onnxruntime
import pytest
import torch
from torch import nn

import fusedrnn
from fusedrnn import convert

T, B = 5, 3
LAYERS = ("RNN", "GRU", "LSTM")

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's calls of what torch and onnxscript have deprecated


def flat(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in flat(part)]


def run_exported(module: nn.Module, example: torch.Tensor, inputs: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Outputs of the exported module for each of the inputs, whose second dimension may differ from the example's."""
    program = torch.onnx.export(module.eval(), (example,), dynamic_shapes=({1: "batch"},), verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [list(map(torch.from_numpy, session.run(None, {name: x.numpy()}))) for x in inputs]


def assert_close(got: list[torch.Tensor], want) -> None:
    for one, other in zip(got, flat(want), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_onnxruntime_runs_what_to_torch_gives(name):
    layer = getattr(fusedrnn, name)(4, 6, num_layers=2, bidirectional=True, bias=False)
    inputs = [torch.randn(T, batch, 4) for batch in (B, 1, 7)]
    for x, got in zip(inputs, run_exported(layer.to_torch(), inputs[0], inputs), strict=True):
        assert_close(got, layer(x))


class Tagger(nn.Module):
    """Layers with biases, one of them batch first, and cells."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(
            [nn.LSTM(4, 6, bidirectional=True), nn.GRU(12, 6, batch_first=True), nn.RNN(6, 6, nonlinearity="relu")]
        )
        self.cells = nn.ModuleList([nn.GRUCell(6, 5), nn.RNNCell(5, 5), nn.LSTMCell(5, 5)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        lstm, gru, rnn = self.layers
        y, _ = lstm(self.embed(tokens))
        y, _ = gru(y.transpose(0, 1))
        h = rnn(y.transpose(0, 1))[0][-1]
        for cell in self.cells:
            h = cell(h)
        return torch.cat(h, -1)


def test_a_converted_model_is_exported_once_it_is_converted_back():
    model, tokens = Tagger(), torch.randint(10, (T, B))
    assert len(convert(model).converted) == 6
    want = model(tokens)
    assert len(convert(model, to="torch").converted) == 6
    [got] = run_exported(model, tokens, [tokens])
    assert_close(got, want)


@pytest.mark.parametrize("name", LAYERS)
def test_the_exporter_refuses_our_ops_by_name(name):
    with pytest.raises(torch.onnx.OnnxExporterError) as refused:
        run_exported(nn.Sequential(getattr(fusedrnn, name)(4, 6)), torch.randn(T, B, 4), [])
    assert f"No ONNX function found for <OpOverload(op='fusedrnn.{name.lower()}_forward'" in str(refused.value)


def test_the_exporter_refuses_a_cell():
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"fusedrnn\.gru_forward"):
        torch.onnx.export(fusedrnn.GRUCell(4, 6), (torch.randn(B, 4),), verbose=False)
