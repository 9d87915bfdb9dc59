"""Trials, and their storage by Optuna."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritoncrf.models.tuning.problem import Parameters

__all__ = ["DIGITS", "Trial", "expect_optuna", "stored"]

DIGITS = 3  # of a number that a search proposes


@dataclass(frozen=True)
class Trial:
    """Arguments of `refine`, and their measure in the search of a fold."""

    parameters: Parameters
    value: float


def expect_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError('tune needs Optuna: pip install "tritoncrf[tune]"') from None


def stored(study: str | Path | None, name: str, digest: str) -> Any:
    """Optuna's study of a fold, in memory or in a file."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = None if study is None else f"sqlite:///{Path(study).resolve()}"
    try:
        found = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
        known = found.user_attrs.get("problem", digest)
    except Exception as error:  # from SQLAlchemy, which Optuna uses
        last = str(error).split("\n")[0]
        raise ValueError(f"study: expected the file of a search, or a new file, got {study}: {last}") from error
    if known != digest:
        raise ValueError(f"study: expected the file of this search, got {study}, with other images or arguments")
    found.set_user_attr("problem", digest)
    return found
