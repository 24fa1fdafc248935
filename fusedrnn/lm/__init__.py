"""Language models on recurrent layers: corpora, batches, training, sampling, and the run folders they leave.

What needs the extra packages of `fusedrnn[lm]` is imported from its own module: `run_folder`, `plots`, `progress`.
"""

from fusedrnn.lm.batches import Batches
from fusedrnn.lm.config import TrainConfig
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
from fusedrnn.lm.evaluation import evaluate, perplexity
from fusedrnn.lm.model import LanguageModel, build_model
from fusedrnn.lm.optimization import grad_clipping
from fusedrnn.lm.sampling import Choice, continuation, generate, generate_many
from fusedrnn.lm.text import TOKENIZERS, Vocab
from fusedrnn.lm.trainer import Trainer, train

__all__ = [
    "CORPORA",
    "TOKENIZERS",
    "BadInput",
    "Batches",
    "Choice",
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
    "evaluate",
    "generate",
    "generate_many",
    "grad_clipping",
    "load_corpus",
    "load_data_time_machine",
    "perplexity",
    "predict",
    "train",
]
