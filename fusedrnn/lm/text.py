"""From text to tokens and back.

course  line by line, every run of characters that are not ASCII letters becomes one space, the ends are trimmed, the
        rest is lower case; the lines are joined with nothing between them. What textbooks do to The Time Machine.
char    every character as it stands, line ends included.
byte    every byte of the text in UTF-8, one character of the same number each. The vocabulary is all 256.
word    what lies between spaces, and `<eos>` for every line end: the custom of Penn Treebank and WikiText.
"""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import torch

UNKNOWN, END_OF_LINE = "<unk>", "<eos>"
BYTES = [chr(number) for number in range(256)]
_NOT_LETTERS = re.compile("[^A-Za-z]+")


class Tokenizer(ABC):
    """One way to cut a text up; unit is what a token is called."""

    unit = "character"

    @abstractmethod
    def split(self, text: str) -> Sequence[str]:
        """The tokens of a text."""

    def split_prompt(self, prompt: str) -> Sequence[str]:
        """The tokens of a text that a model is to go on from: nothing is trimmed at its ends."""
        return self.split(prompt)

    def spell(self, tokens: Iterable[str]) -> Iterator[str]:
        """The text that tokens make, a piece for each as soon as it is known; perhaps an empty one."""
        return iter(tokens)


class Course(Tokenizer):
    def split(self, text: str) -> str:
        return "".join(self.split_prompt(line).strip() for line in text.split("\n"))

    def split_prompt(self, prompt: str) -> str:
        return _NOT_LETTERS.sub(" ", prompt).lower()


class Characters(Tokenizer):
    def split(self, text: str) -> str:
        return text


class Bytes(Tokenizer):
    unit = "byte"

    def split(self, text: str) -> str:
        """Bytes that are not UTF-8 are those that Python escaped, as it does in what is typed."""
        return text.encode(errors="surrogateescape").decode("latin-1")

    def spell(self, tokens: Iterable[str]) -> Iterator[str]:
        """What is not UTF-8 is shown as U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(token.encode("latin-1"))
        yield decoder.decode(b"", final=True)


class Words(Tokenizer):
    unit = "word"

    def split(self, text: str) -> list[str]:
        lines = text.removesuffix("\n").split("\n")
        tokens = [token for line in lines for token in (*line.split(), END_OF_LINE)]
        return tokens if text.endswith("\n") else tokens[:-1]

    def spell(self, tokens: Iterable[str]) -> Iterator[str]:
        at_start = True
        for token in tokens:
            ends = token == END_OF_LINE
            yield "\n" if ends else token if at_start else f" {token}"
            at_start = ends


TOKENIZERS: dict[str, Tokenizer] = {"course": Course(), "char": Characters(), "byte": Bytes(), "word": Words()}


class Vocab:
    """Tokens and their numbers: `<unk>` is 0, the rest follow by falling frequency, ties in order of first appearance.

    most: keep so many of them, 0 for all
    idx_to_token: list of tokens
    token_to_idx: its inverse
    """

    def __init__(self, tokens: Iterable[str], most: int = 0):
        by_frequency = (token for token, _ in Counter(tokens).most_common() if token != UNKNOWN)
        self._number([UNKNOWN, *by_frequency][: most + 1 if most else None])

    @classmethod
    def of(cls, idx_to_token: list[str]) -> "Vocab":
        """These tokens in this order, `<unk>` first; or the 256 bytes, among which nothing is unknown."""
        vocab = cls.__new__(cls)
        vocab._number(idx_to_token)
        return vocab

    def _number(self, tokens: list[str]) -> None:
        self.idx_to_token = tokens
        self.token_to_idx = {token: index for index, token in enumerate(tokens)}

    @property
    def unknown(self) -> int | None:
        """The number of `<unk>`, where there is one."""
        return self.token_to_idx.get(UNKNOWN)

    def __len__(self) -> int:
        return len(self.idx_to_token)

    def __contains__(self, token: object) -> bool:
        return token in self.token_to_idx

    @overload
    def __getitem__(self, token: str) -> int: ...
    @overload
    def __getitem__(self, token: list[str] | tuple[str, ...]) -> list[int]: ...
    def __getitem__(self, token: str | list[str] | tuple[str, ...]) -> int | list[int]:
        """The number of a token, or of each in a list; 0 for what is not in the vocabulary."""
        if isinstance(token, list | tuple):
            return [self[each] for each in token]
        return self.token_to_idx.get(token, 0)

    def to_tokens(self, indices: Iterable[int]) -> list[str]:
        return [self.idx_to_token[index] for index in indices]

    def encode(self, tokens: Iterable[str]) -> torch.Tensor:
        """Token numbers, int64 [N]."""
        return torch.tensor([self.token_to_idx.get(token, 0) for token in tokens], dtype=torch.int64)

    def to_json(self) -> str:
        return json.dumps({"idx_to_token": self.idx_to_token}, ensure_ascii=False, indent=0) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Vocab":
        """Read what to_json wrote. Raises ValueError for anything else."""
        content = json.loads(text)
        tokens = content.get("idx_to_token") if isinstance(content, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise ValueError("no list of tokens under 'idx_to_token'")
        if tokens != BYTES and (tokens[:1] != [UNKNOWN] or len(set(tokens)) != len(tokens)):
            raise ValueError(f"the tokens must be distinct and start with {UNKNOWN!r}")
        return cls.of(tokens)
