"""The Kedro datasets for a tokenizer, for tensors and for a trained classifier."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kedro.io.core import AbstractVersionedDataset, DatasetError, Version

from account_tax.storage.files import sha256_of
from account_tax.storage.prepared import digest_file, is_intact

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from account_tax.model.classifier import LoadedClassifier


class _LocalDataset(AbstractVersionedDataset[Any, Any]):
    """Something at a local path, with versions."""

    def __init__(
        self,
        *,
        filepath: str,
        version: Version | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        """Name the path; nothing is read yet.

        Args:
            filepath: The file or folder; with a version, the parent of the version's.
            version: Kedro's, given by `versioned: true` in the catalog.
            metadata: Free for the user; Kedro ignores it.
        """
        super().__init__(PurePosixPath(filepath), version)
        self.metadata = metadata

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}


class TensorsDataset(_LocalDataset):
    """Tensors by name as one safetensors file, its digest beside it."""

    def load(self) -> dict[str, Tensor]:
        """Return the tensors, on the CPU."""
        from safetensors.torch import load_file

        path = Path(self._get_load_path())
        if not is_intact(path):
            raise DatasetError(
                f"{path} is not the file that was written. Train again: it is prepared anew."
            )
        return load_file(path)

    def save(self, data: dict[str, Tensor]) -> None:
        """Write the tensors."""
        from safetensors.torch import save_file

        path = Path(self._get_save_path())
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(data, path)
        digest_file(path).write_text(sha256_of(path), encoding="ascii")

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_file()


class TokenizerDataset(_LocalDataset):
    """A tokenizer as a local folder of JSON and text files.

    It is written by `save_pretrained` and read by `from_pretrained`: a pickled tokenizer runs code
    when it is loaded and breaks across versions.
    """

    def load(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer, from its own files alone: no network, no code of a model's."""
        # Imported here: whoever only lists the catalog need not wait for transformers.
        from account_tax.model.classifier import read_tokenizer

        return read_tokenizer(Path(self._get_load_path()))

    def save(self, data: PreTrainedTokenizerBase) -> None:
        """Write the tokenizer's files."""
        data.save_pretrained(str(self._get_save_path()))

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / "tokenizer_config.json").is_file()


class ClassifierDataset(_LocalDataset):
    """A trained classifier in its folder; only read, as training's ranks write it."""

    def load(self) -> LoadedClassifier:
        """Return the classifier under its base, which is fetched by reference and checked."""
        from account_tax.model.classifier import read_classifier

        return read_classifier(Path(self._get_load_path()))

    def save(self, data: Any) -> None:
        """Raise DatasetError: the stage `train` writes it."""
        raise DatasetError(f"{self._filepath} is written by training alone.")

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / "classifier.json").is_file()
