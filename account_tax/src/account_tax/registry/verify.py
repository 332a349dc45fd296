"""The cold check: does a version, loaded by a fresh process, repeat the trainer's logits?

`python -m account_tax.registry.verify <model_uri> <probe.json> [<content_sha256>]`

It imports nothing of the project, so registration can also run this file by its path, where the
model has to stand on its own. The last line of output is JSON; the exit status is 1 on failure.
With `-` it imports what models need and then waits for a line: a JSON object with `arguments` and
`environment`. Registration starts it so while the test split is evaluated.
"""

import gc
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.artifacts import download_artifacts
from mlflow.models import Model

# Largest difference allowed between a trainer's logits and the registered model's, which computes
# in float32. In half precision it is relative to the largest logit: rounding a six-layer encoder
# was measured to move logits by up to 1.8 % of it in bf16, 0.15 % in fp16.
FP32_TOLERANCE = 1e-5
HALF_TOLERANCE = {"bf16": 5e-2, "fp16": 1e-2}


class VerificationError(ValueError):
    """A loaded model is not the one that was trained."""


def verify_version(
    model_uri: str, probe: dict[str, Any], content_sha256: str | None = None
) -> dict[str, Any]:
    """Return how far a registered model's logits are from the trainer's, after checking both.

    Args:
        model_uri: What MLflow loads, such as `models:/account-tax/3`.
        probe: texts, the trainer's logits for them, and its precision (fp32, bf16 or fp16);
            encoder_logits, where n-grams have a part in the logits.
        content_sha256: The manifest's digest; None skips this one check.

    Raises:
        VerificationError: If a file or a logit differs; the message shows which, and how far.
    """
    if not probe["texts"]:
        raise VerificationError("probe.json has no texts: there is nothing to compare.")
    with tempfile.TemporaryDirectory() as folder:
        path = download_artifacts(model_uri, dst_path=folder)
        files = check_files(Path(path), content_sha256)
        # Who registers compares the environment; MLflow's list of it would take half a second.
        loaded: Any = mlflow.pyfunc.load_model(path, suppress_warnings=True)
        model = loaded.unwrap_python_model()
        logits = model.classifier.logits(probe["texts"])
    expected, encoder = probe["logits"], probe.get("encoder_logits")
    difference = compare_logits(logits, np.asarray(expected), probe["precision"], encoder)
    return {"files": files, "texts": len(probe["texts"]), **difference}


def check_files(model_folder: Path, content_sha256: str | None) -> int:
    """Return how many files of an MLflow model were compared with the classifier's manifest."""
    flavor = Model.load(model_folder).flavors[mlflow.pyfunc.FLAVOR_NAME]
    folder = model_folder / flavor["artifacts"]["classifier"]["path"]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if content_sha256 and manifest["content_sha256"] != content_sha256:
        raise VerificationError(
            f"its content_sha256 is {manifest['content_sha256']}, expected {content_sha256}."
        )
    listed = {folder / name: entry for name, entry in manifest["files"].items()}
    listed |= {model_folder / name: entry for name, entry in manifest["code"].items()}
    for file, entry in listed.items():
        if hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
            raise VerificationError(f"{file.name} is not the file that the manifest lists.")
    return len(listed)


def compare_logits(
    found: np.ndarray, expected: np.ndarray, precision: str, encoder: Any = None
) -> dict[str, float]:
    """Return the largest difference and its tolerance; raise if it is larger, or a label flips.

    A row whose two best logits are closer than the tolerance may change its label. Only the
    encoder's part, where that is not all, was computed in half precision.
    """
    if found.shape != expected.shape:
        raise VerificationError(
            f"its logits have the shape {found.shape}, the trainer's {expected.shape}."
        )
    tolerance = FP32_TOLERANCE
    if precision != "fp32":
        half = expected if encoder is None else np.asarray(encoder)
        tolerance = HALF_TOLERANCE[precision] * max(1.0, float(np.abs(half).max()))
    largest = float(np.abs(found - expected).max())
    if not largest <= tolerance:  # also true of NaN
        raise VerificationError(
            f"its logits differ from the trainer's by up to {largest:.3g}, "
            f"allowed are {tolerance:.3g} in {precision}."
        )
    top = np.sort(expected, axis=-1)
    clear = top[:, -1] - top[:, -2] > tolerance
    flipped = int((found.argmax(-1) != expected.argmax(-1))[clear].sum())
    if flipped:
        raise VerificationError(f"{flipped} of {len(found)} probe texts get another label.")
    return {"max_abs_diff": largest, "tolerance": tolerance}


def main(arguments: list[str]) -> int:
    """Print the outcome as one line of JSON and return the exit status."""
    if arguments == ["-"]:
        # What models need takes seconds, spent before there is a version; nothing of it is garbage.
        gc.disable()
        import peft  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401

        if "sql" in os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")[0]:
            import mlflow.store.model_registry.sqlalchemy_store
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        gc.enable()
        order = json.loads(sys.stdin.readline())
        os.environ.update(order["environment"])
        arguments = order["arguments"]
    model_uri, probe_file, *content_sha256 = arguments
    probe = json.loads(Path(probe_file).read_text(encoding="utf-8"))
    try:
        outcome = {"verified": True, **verify_version(model_uri, probe, *content_sha256)}
    except Exception as err:  # whatever keeps it from loading is the answer
        outcome = {"verified": False, "reason": f"{type(err).__name__}: {err}"}
    sys.stdout.write(json.dumps(outcome, ensure_ascii=False) + "\n")
    return 0 if outcome["verified"] else 1


if __name__ == "__main__":
    exit_status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_status)  # to take the libraries apart takes two seconds, for which others wait
