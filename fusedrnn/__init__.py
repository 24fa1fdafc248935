"""Drop-in torch.nn.RNN, GRU and LSTM whose whole time loop, forward and backward, is one fused kernel."""

from fusedrnn import functional
from fusedrnn.autograd import GRUFunction, LSTMFunction, RNNFunction
from fusedrnn.backends.base import BackendError
from fusedrnn.convert import Conversion, convert
from fusedrnn.dispatch import use_backend
from fusedrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "BackendError",
    "Conversion",
    "GRUCell",
    "GRUFunction",
    "LSTMCell",
    "LSTMFunction",
    "RNNCell",
    "RNNFunction",
    "convert",
    "functional",
    "use_backend",
]
