"""The licence of a base model, as far as its publisher or package says."""

from importlib import metadata

from .classifier import PACKAGE_SCHEME


def base_package(name: str) -> str:
    """Return the distribution that holds a packaged base, `gt-…` of `package://gt_…/model`."""
    return name.removeprefix(PACKAGE_SCHEME).partition("/")[0].replace("_", "-")


def base_licence(name: str) -> str:
    """Return the licence a packaged base declares; for any other, where to look."""
    if not name.startswith(PACKAGE_SCHEME):
        return "see the base"
    package = metadata.metadata(base_package(name))
    named = [package[key] for key in ("License-Expression", "License") if key in package]
    return named[0] if named else "see the base"
