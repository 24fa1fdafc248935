"""Character language models on recurrent layers: corpora, batches, training, sampling, and the run folders they leave.

What needs the extra packages of `fusedrnn[lm]` is imported from its own module: `run_folder`, `plots`, `progress`.
"""

from fusedrnn.lm.batches import Batches
from fusedrnn.lm.corpus import CORPORA, Corpus, load_corpus
from fusedrnn.lm.course import RNNModel, load_data_time_machine, predict
from fusedrnn.lm.errors import (
    BadInput,
    ConfigError,
    CorpusError,
    CorpusUnavailable,
    RunFolderError,
    TrainingDiverged,
)
from fusedrnn.lm.model import LanguageModel, build_model
from fusedrnn.lm.sampling import continuation, generate
from fusedrnn.lm.text import Vocab, normalize
from fusedrnn.lm.trainer import TrainConfig, Trainer, grad_clipping, perplexity, train

__all__ = [
    "CORPORA",
    "BadInput",
    "Batches",
    "ConfigError",
    "Corpus",
    "CorpusError",
    "CorpusUnavailable",
    "LanguageModel",
    "RNNModel",
    "RunFolderError",
    "TrainConfig",
    "Trainer",
    "TrainingDiverged",
    "Vocab",
    "build_model",
    "continuation",
    "generate",
    "grad_clipping",
    "load_corpus",
    "load_data_time_machine",
    "normalize",
    "perplexity",
    "predict",
    "train",
]
