"""Class activation maps: the class of each map, and a background computed from them."""

from collections.abc import Mapping, Sequence

import numpy as np

from tritoncrf.files import Arrays, FileError

__all__ = ["classes_of", "keys_and_maps", "with_background"]

MAPS = ("high_res", "hr_cam", "rw", "cam")  # names beside "keys", the finest first
SLACK = 1e-3  # by which a score may exceed its bounds


def keys_and_maps(source: object, arrays: Arrays, name: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The integer keys [K], or [1 + K] with a 0 for the background first, and the maps [K, h, w] from 0 to 1, float32.

    Args:
        source: where the arrays come from.
        arrays: "keys" beside one or more of MAPS, as IRN, CLIMS and PuzzleCAM write them; or a map [h, w] for each
            key, as SEAM does.
        name: name of the maps beside "keys"; by default the first of MAPS that exists.
    """
    if not isinstance(arrays, Mapping):
        raise FileError(f"{source}: expected class activation maps with their keys, got one array {list(arrays.shape)}")
    if "keys" in arrays:
        keys = np.atleast_1d(arrays["keys"])
        found = [key for key in (MAPS if name is None else (name,)) if key in arrays]
        if not found:
            wanted = " or ".join(MAPS) if name is None else name
            raise FileError(f"{source}: expected {wanted} beside keys, got {', '.join(map(str, arrays))}")
        maps = arrays[found[0]]
    elif all(str(key).isdecimal() for key in arrays):
        keys = np.array([int(key) for key in arrays], np.int64)
        maps = _stacked(source, [arrays[key] for key in arrays])
    else:
        raise FileError(f"{source}: expected keys and maps, or maps by number, got {', '.join(map(str, arrays))}")
    if keys.ndim != 1 or keys.dtype.kind not in "iu" and keys.size:
        raise FileError(f"{source}: expected keys [K] of integers, got {keys.dtype} {list(keys.shape)}")
    if maps.ndim != 3 or maps.dtype.kind != "f" or len(keys) - len(maps) not in (0, 1):
        raise FileError(f"{source}: expected {len(keys)} maps [K, h, w] of floats, got {maps.dtype} {list(maps.shape)}")
    return keys.astype(np.int64), _scores(source, maps)


def _stacked(source: object, maps: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {map.shape for map in maps}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise FileError(f"{source}: expected maps [h, w] of one size, got {' and '.join(map(str, sorted(shapes)))}")
    return np.stack(maps) if maps else np.zeros((0, 1, 1), np.float32)


def _scores(source: object, maps: np.ndarray) -> np.ndarray:
    """The maps limited to 0 to 1. Where nothing is activated, SEAM writes -1e-5 over the largest activation, or -1 if
    there is none."""
    maps = np.asarray(maps, np.float32)
    if not maps.size:
        return maps
    low, high = float(maps.min()), float(maps.max())
    if not (low >= -1 - SLACK and high <= 1 + SLACK):
        hint = "" if np.isnan(low) else "; divide each by its maximum"
        raise FileError(f"{source}: expected class activation maps from 0 to 1, got {low:.4g} to {high:.4g}{hint}")
    return maps.clip(0, 1)


def classes_of(source: object, keys: np.ndarray, count: int, offset: int) -> np.ndarray:
    """The labels of the background, 0, and of `count` maps; keys that include the background are labels already."""
    if len(keys) == count + 1:
        if keys[0] != 0:
            raise FileError(f"{source}: expected {count} keys, or 0 before them, got {', '.join(map(str, keys))}")
        labels = keys
    else:
        labels = np.concatenate([[0], keys + offset])
    if (labels < 0).any() or len(np.unique(labels)) != len(labels):
        raise FileError(
            f"{source}: expected a different class for each map, and 0 for the background, got "
            f"{', '.join(map(str, labels[1:]))} with --cam-offset {offset}"
        )
    return labels


def with_background(maps: np.ndarray, power: float | None, score: float | None) -> np.ndarray:
    """[1 + K, H, W]: the background, (1 - the largest map) to a power or a constant score, then the maps."""
    scores = np.empty((1 + len(maps), *maps.shape[1:]), maps.dtype)
    scores[0] = (1 - maps.max(0, initial=0)) ** power if power is not None else score
    scores[1:] = maps
    return scores
