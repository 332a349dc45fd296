from tests.pipelines.register.conftest import train_into, trained

__all__ = ["train_into", "trained"]  # as fixtures
