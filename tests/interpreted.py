"""The Triton kernels under Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 pytest tests/interpreted.py

test_triton.py runs it in a process of its own, because Triton asks for the interpreter when it is imported. In here
products of bf16 are wrong, there is no TF32, and programs run one after another: what that hides, and races between
the threads of a program, only a GPU can show (tests marked gpu).
"""

import dataclasses
import itertools

import pytest
import torch
import whole
from problems import Sample, assert_close_to_float64, assert_equal, cases, run

import fusedrnn
from fusedrnn.backends import launches
from fusedrnn.backends import triton as backend
from fusedrnn.backends.base import Problem
from fusedrnn.backends.configurations import Configuration
from fusedrnn.cells import CELLS
from fusedrnn.dispatch import REGISTRY, explain, select
from fusedrnn.kernels import cells as kernels
from fusedrnn.kernels import tiled

assert backend.INTERPRETED, "run with TRITON_INTERPRET=1"

SIZES = (
    dict(T=1, B=1, I=1, H=1),
    dict(T=6, B=0, I=3, H=5),
    dict(T=3, B=17, I=5, H=33),  # two programs, the second with one row
    dict(T=2, B=3, I=12, H=64),
    dict(T=5, B=3, I=7, H=15, saturating=True),
    dict(T=4, B=5, I=6, H=18, strided=True),
    dict(T=4, B=3, I=4, H=11, reverse=True),
    dict(T=4, B=3, I=5, H=19, D=2, bias=False, batch_first=True),
    dict(T=5, B=4, I=27, H=20, tokens=True, D=2, lengths="packed"),
    dict(T=4, B=4, I=27, H=20, tokens=True, D=2, resets=True, batch_first=True),
    dict(T=5, B=5, I=6, H=18, D=2, resets=True, lengths="given"),
    dict(T=5, B=4, I=6, H=18, D=2, resets=True, lengths="packed"),
)
ALL = tuple(range(len(SIZES)))
NEAR = ("rnn_relu", "gru_reset_before")  # what differs from another cell are the gates alone
KINDS = {  # sizes of each kind of kernel; of the NEAR those in brackets
    "resident": (ALL, (0, 4, 5, 8, 10, 11)),
    "streamed": ((1, 2, 6, 7, 9, 10), (2, 10)),
    "stepped": ((0, 3, 4, 5, 8, 11), (4, 8)),
}
SAMPLES = [(kind, Sample(cell, **SIZES[k])) for kind, sizes in KINDS.items() for cell in CELLS
           for k in sizes[cell in NEAR or (kind == "stepped" and cell == "rnn_tanh")]]  # fmt: skip
ONE_OF_EACH = [Sample(cell, **SIZES[7 + n % 2]) for n, cell in enumerate(CELLS)]
ONE_OF_EACH_KIND = [(kind, sample) for n, kind in enumerate(KINDS) for sample in ONE_OF_EACH[n::2]]


def each(samples):
    """pytest parameters (kind, sample) of all that the backend declares."""
    found = {sample: case.id for _, sample in samples for case in cases(("triton",), torch.float32, [sample])}
    assert len(found) == len({sample for _, sample in samples})
    return [pytest.param(kind, sample, id=f"{kind}-{found[sample]}") for kind, sample in samples]


@pytest.fixture
def kind(request, monkeypatch):
    """Has the kernels of one kind run it; tiles of 16 units, so that there are several."""
    if request.param != "resident":
        small = Configuration(request.param, rows=16, units=16, depth=16, warps=4, stages=2)
        monkeypatch.setattr(backend, "preferred", lambda *problem: [small])
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill what torch.empty returns with NaN, so that an element no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("kind", "sample"), each(SAMPLES), indirect=["kind"])
def test_float32_error_is_at_most_twice_that_of_torch(kind, sample):
    draws = 8 if sample.saturating and kind == "resident" else 1
    assert_close_to_float64(sample, "triton", torch.float32, draws)


class Recorded:
    """Stands in for a captured graph: the launches of the call that was captured, to be made again on its table."""

    def __init__(self, graphs, run, size):
        self.table, self.run, self.size = graphs.table, run, size

    def replay(self):
        for step in range(self.size):
            self.run(self.table, step)
        tiled.advance[(1,)](self.table, self.size)


@pytest.mark.parametrize("kind", ["stepped"], indirect=True)
@pytest.mark.parametrize("cell", ["gru_reset_before", "lstm"])
def test_captured_steps_serve_other_tensors_and_lengths(cell, kind, monkeypatch):
    """What a graph holds are the launches and their table: the captured call's own tensors are gone when it is replayed
    for calls of other lengths, other tensors and another order of memory."""
    captured = []
    monkeypatch.setattr(launches, "GRAPH_STEPS", (4, 2))
    monkeypatch.setattr(launches, "_stream_of_graphs", lambda call: 7)
    monkeypatch.setattr(launches.Graphs, "_capture", lambda *given: captured.append(given[2]) or Recorded(*given))
    calls = [dict(T=2), dict(T=3), dict(T=6), dict(T=5, draw=1)]
    for options in calls:
        sample = Sample(cell, B=2, I=3, H=17, **options)
        assert_equal(run(sample, "triton", torch.float32), run(sample, "reference", torch.float32), 2e-6)
    assert sorted(captured) == [2, 2, 4, 4]  # of forward and of backward, once each


def test_many_units_run_step_by_step():
    sample = Sample("rnn_tanh", T=2, B=2, I=3, H=260)
    assert "forward stepped" in explain(Problem.of(sample.call(torch.float32)), "triton")
    assert_close_to_float64(sample, "triton", torch.float32, draws=1)


CONCAT = [(kind, Sample(cell, **SIZES[7 + 4 * (n % 2)], schedule="concat"))
          for n, (cell, kind) in enumerate(itertools.product(CELLS, KINDS))]  # fmt: skip


@pytest.mark.parametrize(("kind", "sample"), each(CONCAT), indirect=["kind"])
def test_x_and_h_in_one_step_give_the_same(kind, sample):
    assert_equal(run(sample, "triton", torch.float32), run(sample, "reference", torch.float32), 2e-6)


@pytest.mark.parametrize(("kind", "sample"), each(ONE_OF_EACH_KIND), indirect=["kind"])
def test_forward_of_one_backend_with_backward_of_another(kind, sample):
    want = run(sample, "reference", torch.float32)
    assert_equal(run(sample, "triton", torch.float32, backward_on="reference"), want, 2e-6)
    assert_equal(run(sample, "reference", torch.float32, backward_on="triton"), want, 2e-6)


@pytest.mark.parametrize(("kind", "sample"), each(ONE_OF_EACH_KIND), indirect=["kind"])
def test_results_repeat_and_saving_changes_no_output(kind, sample):
    whole.repeats_and_saving_changes_no_output(sample, "triton", torch.float32)


@pytest.mark.parametrize(("sample", "name"), cases(("triton",), torch.float32, ONE_OF_EACH))
def test_any_layout(sample, name):
    whole.takes_any_layout(sample, name, torch.float32)


@pytest.mark.parametrize(("sample", "name"), cases(("triton",), torch.float32, ONE_OF_EACH))
def test_absent_and_expanded_cotangents_and_single_gradients(sample, name):
    whole.takes_any_cotangents_and_gives_single_gradients(sample, name, torch.float32)


@pytest.mark.parametrize(("sample", "name"), cases(("triton",), torch.float32, ONE_OF_EACH))
def test_inputs_are_not_written_and_outputs_share_no_memory(sample, name):
    whole.writes_no_input_and_shares_no_memory(sample, name, torch.float32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_modules_train_on_it(name, packed):
    whole.trains(getattr(fusedrnn, name)(5, 7, num_layers=2, bidirectional=True, backend="triton"), packed, 2e-6)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_gradient_for_each_sample(name):
    whole.gives_a_gradient_for_each_sample(getattr(fusedrnn, name)(5, 7, backend="triton"), 2e-6)


@pytest.mark.filterwarnings("ignore:invalid value")  # of the branch that an infinite argument does not take
def test_tanh_and_sigmoid_saturate_keep_nan_and_are_precise():
    import triton
    import triton.language as tl

    @triton.jit
    def both(x, t, s, SIZE: tl.constexpr):
        at = tl.arange(0, SIZE)
        value = tl.load(x + at)
        tl.store(t + at, kernels.tanh(value))
        tl.store(s + at, kernels.sigmoid(value))

    magnitudes = torch.logspace(-6, 2.5, 2044)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-38, 0.625, 0.6249999])
    x = torch.cat((magnitudes, -magnitudes, special))
    t, s = torch.empty_like(x), torch.empty_like(x)
    both[(1,)](x, t, s, SIZE=len(x))
    for got, exact in ((t, x.double().tanh()), (s, x.double().sigmoid())):
        assert torch.equal(got.isnan(), exact.isnan())
        known = ~exact.isnan()
        ulp = torch.nextafter(got, got + 1)[known].double() - got[known].double()
        assert ((got[known].double() - exact[known]).abs() <= 3 * ulp.clamp(min=2**-149)).all()
    assert torch.equal(t[x.abs() > 10], x[x.abs() > 10].sign()) and torch.signbit(t[x == 0]).tolist() == [False, True]


def test_it_takes_cpu_tensors_only_where_it_is_named():
    problem = Problem("gru", "cpu", torch.float32, T=3, B=2, I=4, H=5)
    assert select(problem) == "cpu" and select(problem, "triton") == "triton"
    assert explain(problem, "triton").startswith("gru float32 T=3 B=2 I=4 H=5 on cpu: triton, schedule hoisted")
    forced = dataclasses.replace(problem, schedule="concat")
    assert "triton, schedule concat" in explain(forced, "triton")


def test_tokens_outside_the_vocabulary_are_refused():
    call = Sample("gru", T=2, B=1, I=3, H=4, tokens=True).call(torch.float32)
    with pytest.raises(RuntimeError, match="token outside the vocabulary"):
        REGISTRY["triton"].forward(call._replace(x=call.x + 3))
