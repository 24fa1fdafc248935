"""RNN, GRU, LSTM and their cells: parameters, options and states of torch.nn's modules around `fusedrnn.functional`.

Constructors, attributes, parameter names, initial weights, state_dict, outputs and errors are those of torch.nn. The
classes derive from nn.RNNBase and nn.RNNCellBase, not from nn.LSTM and its like, at which torch.compile breaks the
graph. Added are int64 tokens in place of one-hot rows, and keyword-only options, which every class takes:

    backend      "auto" or a name in `fusedrnn.dispatch.REGISTRY`
    schedule     "auto", "concat" or "hoisted", see `fusedrnn.functional`
    memory       layers: "full" or "lean", see there
    reset_after  GRU and GRUCell: False puts the reset gate before the product with W_hn, as Cho et al. 2014 print it

hidden_size of a layer with bidirectional=True may be a pair, (forward, reverse). The output is [T, B, sum of both], and
each state is a pair as well, ([L, B, forward], [L, B, reverse]); an LSTM takes and returns (h, c) of such pairs. One
state of another shape raises RuntimeError, sizes that are not two or not positive ValueError, as does proj_size.
"""

from fusedrnn.modules.cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.modules.layers import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]
