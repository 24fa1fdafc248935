"""The corpora by name, and where their text comes from.

A named corpus is looked for in this order, and every copy that is found must have the sha1 in the table:

1. an explicit path (a file, or a folder that holds it);
2. the folder `$FUSEDRNN_DATA`;
3. the user's cache folder;
4. the network, from the first address that serves it; the copy then goes into the cache.

`pydoc` needs none of that: every CPython carries it. Its text differs between Python releases, so no published number
applies to it. Anything that is not a name is the path of a UTF-8 text file.
"""

import contextlib
import hashlib
import http.client
import os
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from fusedrnn.lm.errors import CorpusError, CorpusUnavailable
from fusedrnn.lm.files import write_atomically

DOWNLOAD_TIMEOUT = 10.0  # seconds without a byte from an address before the next one is tried


@dataclass(frozen=True)
class CorpusFile:
    """A published file that a corpus name stands for. size is in bytes."""

    file: str
    size: int
    sha1: str
    urls: tuple[str, ...]
    about: str
    is_text: bool = True
    tokens: str = "char"
    max_tokens: int = 0


CORPORA = {
    "timemachine": CorpusFile(
        file="timemachine.txt",
        size=178_979,
        sha1="090b5e7e70c295757f55df93cb0a180b9691891a",
        urls=(
            "http://d2l-data.s3-accelerate.amazonaws.com/timemachine.txt",
            "https://raw.githubusercontent.com/d2l-ai/d2l-zh/592fbef84a684e752393edbf267c07dbc53e082b/data/timemachine.txt",
        ),
        about="The Time Machine, H. G. Wells, public domain",
        tokens="course",
        max_tokens=10_000,
    ),
    "tinyshakespeare": CorpusFile(
        file="tinyshakespeare.txt",
        size=1_115_394,
        sha1="04486597058d11dcc2c556b1d0433891eb639d2e",
        urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
        about="scenes from Shakespeare, public domain",
    ),
    "fra-eng": CorpusFile(
        file="fra-eng.zip",
        size=3_420_152,
        sha1="94646ad1522d915e7b0f9296181140edcf86a4f5",
        urls=("http://d2l-data.s3-accelerate.amazonaws.com/fra-eng.zip",),
        about="English-French sentence pairs, manythings.org/anki and tatoeba.org, CC-BY 2.0",
        is_text=False,
    ),
}
LANGUAGE_MODEL_CORPORA = (*(name for name, entry in CORPORA.items() if entry.is_text), "pydoc")


@dataclass(frozen=True)
class Corpus:
    """A text to train on.

    name: the corpus's name, or the path as the user gave it
    data: the UTF-8 bytes as they were found, never empty
    tokens: how the text is cut up unless the user says otherwise, 'course' or 'char' (see fusedrnn.lm.text)
    max_tokens: how many tokens from the start are trained on unless the user says otherwise, 0 for all
    stands_in_for: the name of the corpus that was asked for and could not be had, else empty
    """

    name: str
    data: bytes
    tokens: str
    max_tokens: int
    stands_in_for: str = ""

    @property
    def label(self) -> str:
        """The name to print beside every number measured on this text."""
        return f"{self.name} (standing in for {self.stands_in_for})" if self.stands_in_for else self.name

    @property
    def sha1(self) -> str:
        return hashlib.sha1(self.data, usedforsecurity=False).hexdigest()

    @property
    def text(self) -> str:
        """What data says, see decode."""
        return decode(self.data)


def decode(data: bytes) -> str:
    """UTF-8 text, without a byte order mark and with `\\n` for every line end. Raises UnicodeDecodeError."""
    return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def load_corpus(name: str, path: str | Path | None = None) -> Corpus:
    """The corpus that name stands for; path, if given, is where to look before everywhere else.

    Raises CorpusUnavailable when a named corpus cannot be had, and CorpusError when what was found is not it, is not
    UTF-8, or is empty, and when name is neither in the table nor a file.
    """
    if name == "pydoc":
        return Corpus(name, _pydoc_text().encode(), tokens="course", max_tokens=10_000)
    entry = CORPORA.get(name)
    if entry is None:
        if path is not None:
            raise CorpusError(f"corpus {name!r} is not a name, so it cannot be taken from {os.fspath(path)!r}")
        printable = os.fsencode(name).decode(errors="replace")
        return Corpus(printable, _read_user_file(name), tokens="char", max_tokens=0)
    if not entry.is_text:
        raise CorpusError(f"corpus {name!r} holds {entry.about}: no text for a language model")
    data = find_corpus_file(name, path)
    return Corpus(name, data, tokens=entry.tokens, max_tokens=entry.max_tokens)


def pydoc_in_place_of(name: str) -> Corpus:
    """The corpus that every Python carries, labelled as standing in for name."""
    corpus = load_corpus("pydoc")
    return Corpus(corpus.name, corpus.data, corpus.tokens, corpus.max_tokens, stands_in_for=name)


def find_corpus_file(name: str, path: str | Path | None = None) -> bytes:
    """The bytes of a named corpus's file, looked for in the order this module's docstring gives.

    Raises CorpusUnavailable when there is no copy, CorpusError when a copy has the wrong sha1 or cannot be read.
    """
    entry = CORPORA[name]
    if path is not None:
        explicit = Path(path)
        return _read_checked(name, explicit / entry.file if explicit.is_dir() else explicit)
    given = [Path(os.environ["FUSEDRNN_DATA"])] if os.environ.get("FUSEDRNN_DATA") else []
    folders = [*given, cache_folder()]
    for folder in folders:
        if (folder / entry.file).exists():
            return _read_checked(name, folder / entry.file)
    return _download(name, folders)


def cache_folder() -> Path:
    """Where downloaded corpora are kept, by the platform's custom (`$XDG_CACHE_HOME/fusedrnn` on Linux)."""
    import platformdirs

    return platformdirs.user_cache_path("fusedrnn", appauthor=False)


def _download(name: str, folders: list[Path]) -> bytes:
    """Fetch from the first address that serves the right bytes what is in none of the folders; leave a copy in the last
    if it can be written.
    """
    entry = CORPORA[name]
    destination = folders[-1] / entry.file
    failures, wrong = [], []
    for url in entry.urls:
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
                data: bytes = response.read(entry.size + 1)
                if response.length and len(data) <= entry.size:
                    raise http.client.IncompleteRead(data, response.length)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{urllib.parse.urlsplit(url).hostname}: {getattr(error, 'reason', error)}")
            continue
        if mismatch := _sha1_mismatch(name, data, url):
            wrong.append(mismatch)
            continue
        with contextlib.suppress(OSError):
            destination.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(destination, data)
        return data
    if wrong:
        raise CorpusError("; ".join(wrong))
    looked = " nor in ".join(map(str, folders))
    raise CorpusUnavailable(
        f"corpus {name!r} could not be had: it is not in {looked}, and not to be downloaded "
        f"({'; '.join(failures)}); to supply it, put {entry.file} (sha1 {entry.sha1}) into a folder and set "
        "FUSEDRNN_DATA to it"
    )


def _read_checked(name: str, path: Path) -> bytes:
    try:
        data = _read(path)
    except FileNotFoundError:
        raise CorpusError(f"corpus {name!r}: there is no file {str(path)!r}") from None
    if mismatch := _sha1_mismatch(name, data, str(path)):
        raise CorpusError(mismatch)
    return data


def _sha1_mismatch(name: str, data: bytes, origin: str) -> str:
    """Empty when data is the file that name promises, else a sentence that names both sums."""
    found, expected = hashlib.sha1(data, usedforsecurity=False).hexdigest(), CORPORA[name].sha1
    return "" if found == expected else f"corpus {name!r}: {origin} has sha1 {found}, expected {expected}"


def _read_user_file(name: str) -> bytes:
    try:
        data = _read(Path(name))
    except FileNotFoundError:
        known = ", ".join(LANGUAGE_MODEL_CORPORA)
        raise CorpusError(f"corpus {name!r} is neither a file nor one of {known}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"corpus {name!r} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not text.strip():
        raise CorpusError(f"corpus {name!r} is empty")
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorpusError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise CorpusError(f"cannot read {str(path)!r}: {error}") from None


def _pydoc_text() -> str:
    """The language reference that `help()` shows: about 460 KB of English, in the order of its keys."""
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))
