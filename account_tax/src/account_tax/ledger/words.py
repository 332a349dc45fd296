"""Token ids of many texts by their words, each of which is tokenized once.

Lines of a ledger are made of few words. Where a tokenizer splits at each space before all else, the
ids of a text are those of its words one after the other, with the same tokens around all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

pc: Any = pyarrow.compute  # its functions are made when it is imported, which no checker sees

# Words of such characters, with one space between them: no rule reaches over a space, as it might
# for a mark that joins what stands before it.
WORD = "[!-~À-ɏぁ-ゖァ-ヺ一-鿿가-힣]+"
PLAIN = f"^{WORD}( {WORD})*$"
SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
NORMALIZERS = (  # that read character by character, or put train.model.prefix before all
    *("BertNormalizer", "Lowercase", "StripAccents", "Nmt", "NFC", "NFD", "NFKC", "NFKD"),
    *("Precompiled", "Prepend", "Replace"),
)
SPACES = {"Regex": " {2,}"}  # replaced by one: there are none in plain texts
TOGETHER = 64  # words
MOST_ADDED = 20  # tokens looked for in each text


@dataclass(frozen=True)
class Words:
    """How a tokenizer reads texts of plain words.

    Attributes:
        backend: The tokenizer.
        before: Ids that each text begins with: a special token's, and those of train.model.prefix.
        behind: Ids that each ends with.
        added: Tokens that are found in a text before it is split.
    """

    backend: Any
    before: list[int]
    behind: list[int]
    added: list[str]

    def plain(self, texts: pa.Array) -> np.ndarray:
        """Return which texts are of plain words, (N,) bool."""
        plain = pc.match_substring_regex(texts, PLAIN)
        for token in self.added:
            found = pc.match_substring(texts, token, ignore_case=True)
            plain = pc.and_(plain, pc.invert(found))
        return plain.to_numpy(zero_copy_only=False)

    def read(self, texts: pa.Array, max_length: int) -> pa.ListArray:
        """Return the ids of plain texts, cut to max_length tokens."""
        words = pc.split_pattern(texts, " ")
        coded = words.flatten().dictionary_encode()
        known = self._read_each(coded.dictionary).take(coded.indices)
        ends = known.offsets.to_numpy()[words.offsets.to_numpy()]
        extra = len(self.before) + len(self.behind)
        kept = np.minimum(np.diff(ends), max_length - extra)
        offsets, places = offsets_of(kept + extra), offsets_of(kept)
        found = np.empty(offsets[-1], np.int32)
        for place, token in enumerate(self.before):
            found[offsets[:-1] + place] = token
        for place, token in enumerate(self.behind, start=-len(self.behind)):
            found[offsets[1:] + place] = token
        within = np.arange(places[-1]) - np.repeat(places[:-1], kept)
        source = known.values.to_numpy()[np.repeat(ends[:-1], kept) + within]
        found[np.repeat(offsets[:-1] + len(self.before), kept) + within] = source
        return pa.ListArray.from_arrays(offsets, found)

    def _read_each(self, words: pa.StringArray) -> pa.ListArray:
        """Return the ids of each word; some are read as one text: most of a call is its own."""
        listed, places = words.to_pylist(), offsets_of(pc.add(pc.utf8_length(words), 1))
        starts = range(0, len(listed), TOGETHER)
        self.backend.no_truncation()
        read = self.backend.encode_batch([" ".join(listed[at : at + TOGETHER]) for at in starts])
        around = slice(len(self.before), -len(self.behind) or None)
        ids = [each.ids[around] for each in read]
        firsts = (first for each in read for first, _ in each.offsets[around])  # of its text
        begins = np.repeat(places[starts], list(map(len, ids))) + np.fromiter(firsts, np.int32)
        offsets = offsets_of(np.histogram(begins, places)[0])
        flat = np.fromiter(chain.from_iterable(ids), np.int32)
        return pa.ListArray.from_arrays(offsets, flat)


def offsets_of(lengths: Any) -> np.ndarray:
    """Return where lists of these lengths begin, and the last ends, as Arrow has it."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def words_of(tokenizer: PreTrainedTokenizerBase) -> Words | None:
    """Return how a tokenizer reads words; None where a text may be more than its words to it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.truncation_side != "right":
        return None
    splitters = _rules(backend.pre_tokenizer, "pretokenizers")
    normalizers = _rules(backend.normalizer, "normalizers")
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    replaced = [rule["pattern"] for rule in normalizers if "pattern" in rule]
    if (
        not splitters
        or splitters[0]["type"] not in SPLITTERS
        or any(rule["type"] not in NORMALIZERS for rule in normalizers)
        or len(added) > MOST_ADDED
        or any("Regex" in each or " " in each["String"] for each in replaced if each != SPACES)
        or any(" " in token for token in added)
    ):
        return None
    one, other = (tokenizer(letter)["input_ids"] for letter in "ab")
    before, behind = _shared(one, other), _shared(one[::-1], other[::-1])[::-1]
    return Words(backend, before, behind, added)


def _shared(one: list[int], other: list[int]) -> list[int]:
    """Return what two lists begin with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [first for first, _ in pairs]


def _rules(rule: Any, name: str) -> list[dict[str, Any]]:
    """Return the rules that one consists of, as the tokenizer's file has them."""
    if rule is None:
        return []
    read = json.loads(rule.__getstate__())
    return read[name] if read["type"] == "Sequence" else [read]
