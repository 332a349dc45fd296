from tests.ledger.conftest import ledger_csv, model, parameters, prepared, tokenizer, two_classes

__all__ = [
    "ledger_csv",
    "model",
    "parameters",
    "prepared",
    "tokenizer",
    "two_classes",
]  # as fixtures
