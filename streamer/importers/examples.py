"""Where the example data are."""

from __future__ import annotations

from pathlib import Path

from schemas.errors import UsageError


def examples_dir(name: str = "ml-latest-small") -> Path:
    """The directory of an example data set that comes with a checkout.

    Raises:
        UsageError: if it is not there, as when the package was installed without its sources.
    """
    path = Path(__file__).resolve().parents[2] / "examples" / name
    if not path.is_dir():
        raise UsageError(
            f"example data {path} are not there: they come with a checkout of the sources, not with the installed "
            "package; run from a checkout or give the path of the data set"
        )
    return path
