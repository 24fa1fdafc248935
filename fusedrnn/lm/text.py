"""From text to tokens. A token is one character.

Two ways to cut a text up:

course  line by line, every run of characters that are not ASCII letters becomes one space, the ends are trimmed, the
        rest is lower case; the lines are joined with nothing between them. What textbooks do to The Time Machine.
char    every character as it stands, line ends included.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import overload

import torch

TOKEN_MODES = ("course", "char")
UNKNOWN = "<unk>"
_NOT_LETTERS = re.compile("[^A-Za-z]+")


def normalize(text: str, mode: str) -> str:
    """The text whose characters are the tokens, see the module's docstring for the modes."""
    if mode == "char":
        return text
    return "".join(normalize_prompt(line, mode).strip() for line in text.split("\n"))


def normalize_prompt(prompt: str, mode: str) -> str:
    """As normalize, but a space at either end of the prompt is kept: the model is to go on from there."""
    return prompt if mode == "char" else _NOT_LETTERS.sub(" ", prompt).lower()


class Vocab:
    """Tokens and their numbers: `<unk>` is 0, the rest follow by falling frequency, ties in order of first appearance.

    idx_to_token: list of tokens
    token_to_idx: its inverse
    """

    def __init__(self, tokens: Iterable[str]):
        by_frequency = (token for token, _ in Counter(tokens).most_common())
        self.idx_to_token = [UNKNOWN, *(token for token in by_frequency if token != UNKNOWN)]
        self.token_to_idx = {token: index for index, token in enumerate(self.idx_to_token)}

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
        if tokens[:1] != [UNKNOWN] or len(set(tokens)) != len(tokens):
            raise ValueError(f"the tokens must be distinct and start with {UNKNOWN!r}")
        return cls(tokens)
