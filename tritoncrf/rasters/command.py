"""`tritoncrf refine` for one image whose files are rasters or volumes, or that is read and written in windows."""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tritoncrf import figures
from tritoncrf.actions import FIGURES, doubts, moved, progress, settings_of, source_of, table
from tritoncrf.commands import CommandError, check_output
from tritoncrf.devices import device_found
from tritoncrf.files import read_array, save_figure
from tritoncrf.options import BINARY, SCORES, UNKNOWN
from tritoncrf.rasters import drawing, nifti, streamed
from tritoncrf.rasters.inputs import Inputs, opened, paths_of
from tritoncrf.rasters.opening import TIFF, is_raster
from tritoncrf.rasters.results import Outcome, Refined, write
from tritoncrf.rasters.windows import Source
from tritoncrf.refine import refine
from tritoncrf.summary import Trace

__all__ = ["is_wanted", "refine_raster"]

OPTIONS = ("bands", "modality", "value_range", "spacing", "valid", "features", "max_memory", "scratch", "save")


def is_wanted(options: argparse.Namespace) -> bool:
    """Whether a file or an option needs more than a picture and its scores that are read as a whole."""
    if any(getattr(options, name) not in (None, False) for name in OPTIONS):
        return True
    _, source = source_of(options)
    out = "" if options.out is None else options.out.name.lower()
    return out.endswith((*TIFF, *nifti.ENDINGS)) or is_raster(Path(options.images[0])) or is_raster(source)


def refine_raster(options: argparse.Namespace) -> None:
    """`tritoncrf refine` for such an image."""
    kind, source = source_of(options)
    traced = options.trace or options.trace_figure is not None
    streams = options.max_memory is not None
    if streams and traced:
        raise CommandError("--max-memory: expected none with --trace and --trace-figure, which need the whole image")
    if options.scratch is not None and not streams:
        raise CommandError(f"--scratch: expected --max-memory beside it, got {options.scratch} alone")
    if options.scratch is not None and not options.scratch.is_dir():
        raise CommandError(f"--scratch: expected a folder that exists, got {options.scratch}")
    for option, path in ("--figure", options.figure), ("--trace-figure", options.trace_figure):
        if path is not None:
            check_output(option, path, FIGURES)
    device, settings = device_found(options.device), settings_of(options)
    with contextlib.ExitStack() as stack:
        inputs = opened(options, kind, source, streamed.array if streams else read_array, stack)
        out = _output(options, inputs)
        save = _saved(options, out)
        _expect_distinct(options, source, out)
        settings |= _said(options, inputs, settings)
        _expect_fit(out, kind, inputs, settings)
        start, trace = time.perf_counter(), None
        if streams:
            found = streamed.refined(options, kind, inputs, settings, device, out, save)
            if found is None:
                return
            refined = found
        else:
            refined, trace = _in_memory(kind, inputs, settings, device, save, traced)
        seconds = time.perf_counter() - start
        outcome = Outcome(kind, inputs, settings, refined)
        if options.figure is not None:
            apart = settings.get("spacing", inputs.spacing)
            figure = figures.comparison(*drawing.sections(inputs, outcome, apart), seconds=seconds)
        if not (streams and out.suffix.lower() == ".npy"):  # which is then already written
            write(out, kind, inputs, refined, _classes(kind, inputs, settings) or max(outcome.shares, default=0) + 1)
        if streams:
            streamed.forget(options, out, save)
        if options.figure is not None:
            save_figure(options.figure, figure)
        if trace is not None and options.trace_figure is not None:
            save_figure(options.trace_figure, figures.trace(trace.records))
    if trace is not None and options.trace:
        print(table(trace.records))
        print(trace.summary)
    absent = f", {outcome.absent:.2%} have no data" if outcome.absent else ""
    changed = f"{outcome.changed:.2%} of the pixels changed{moved(outcome.shares, kind)}"
    print(f"wrote {out}: {changed}{absent}, {seconds:.2f} s")
    for line in doubts(outcome.shares, kind, _in_pixels(settings), inputs.size):
        print(f"tritoncrf: warning: {line}", file=sys.stderr)


def _output(options: argparse.Namespace, inputs: Inputs) -> Path:
    """The file to write, by default in the image's format; a default file must not exist yet."""
    endings = (".npy", ".png") if inputs.raster is None else inputs.raster.endings
    if options.out is not None:
        out: Path = options.out
        if not out.name.lower().endswith(endings):
            raise CommandError(f"--out: expected a file name ending in {' or '.join(endings)}, got {out}")
        check_output("--out", out, (out.suffix.lower(),))
        return out
    if inputs.raster is None:
        raise CommandError("--out: expected the name of the output, got none, and no IMAGE to name it after")
    path = inputs.raster.path
    ending = next((ending for ending in reversed(endings) if path.name.lower().endswith(ending)), endings[-1])
    stem = path.name[: -len(ending)] if path.name.lower().endswith(ending) else path.stem
    out = path.with_name(f"{stem}_refined{ending}")
    if os.path.lexists(out) and not options.force:
        raise CommandError(f"--out: expected a new file by default, got {out}, which exists; --force replaces it")
    check_output("--out", out, (out.suffix.lower(),))
    return out


def _saved(options: argparse.Namespace, out: Path) -> str:
    """What is written: "labels" or "probabilities"."""
    suffix = out.suffix.lower()
    if suffix == ".png" and options.save == "probabilities":
        raise CommandError(f"--save: expected labels in a .png, got probabilities for {out}")
    saved: str = options.save or ("probabilities" if suffix == ".npy" else "labels")
    return saved


def _expect_distinct(options: argparse.Namespace, source: Path, out: Path) -> None:
    """No output may replace an input, nor another output."""
    read = [os.path.realpath(path) for path in paths_of(options, source)]
    written: list[str] = []
    for option, path in ("--out", out), ("--figure", options.figure), ("--trace-figure", options.trace_figure):
        if path is None:
            continue
        target = os.path.realpath(path)
        if target in read:
            raise CommandError(f"{option}: expected a file that is not an input, got {path}")
        if target in written:
            raise CommandError(f"--out, --figure, --trace-figure: expected different files, got {path} twice")
        written.append(target)


def _said(options: argparse.Namespace, inputs: Inputs, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `refine` that are not given but follow from the files."""
    said: dict[str, Any] = {}
    guided = settings.get("method") == "guided" or not settings.keys().isdisjoint(("radius", "eps"))
    if inputs.spacing is not None and "spacing" not in settings and not guided:
        said["spacing"] = inputs.spacing
    image = inputs.image
    if image is None or inputs.features is not None or "value_range" in settings:
        return said
    if np.dtype(image.dtype).kind != "f" and image.dtype != np.uint8:
        raise CommandError(f"--value-range: expected LOW,HIGH for an image of {image.dtype}, such as 1%,99%, got none")
    if image.dtype == np.uint8 and image.shape[-1] not in (1, 3):
        said["value_range"] = (0, 255)  # all channels are data; none is opacity
    return said


def _in_pixels(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without bandwidths in another unit than pixels."""
    return {name: value for name, value in settings.items() if name != "theta_space" or "spacing" not in settings}


def _classes(kind: str, inputs: Inputs, settings: dict[str, Any]) -> int | None:
    """The number of classes; None if the labels determine it."""
    if kind in BINARY:
        return 2
    return inputs.scores.shape[0] if kind in SCORES[:3] else settings.get("num_classes")


def _expect_fit(out: Path, kind: str, inputs: Inputs, settings: dict[str, Any]) -> None:
    """Raise an error, before any work, if a .png cannot store the result."""
    if out.suffix.lower() != ".png":
        return
    classes = _classes(kind, inputs, settings) or 2
    if len(inputs.size) != 2:
        raise CommandError(f"--out: expected 2 axes for a .png, got {len(inputs.size)}; write an .npy")
    if classes > UNKNOWN:
        raise CommandError(f"--out: expected at most {UNKNOWN} classes in a .png, got {classes}; write an .npy")


def _in_memory(
    kind: str, inputs: Inputs, settings: dict[str, Any], device: torch.device, save: str, traced: bool
) -> tuple[Refined, Trace | None]:
    """The result of one call, from arrays."""
    with progress("load", "refine") as step:
        arrays = {"features": inputs.features, "valid": inputs.valid, kind: inputs.scores}
        given = settings | {name: _whole(source) for name, source in arrays.items() if source is not None}
        image = None if inputs.seen is None else _whole(inputs.seen)
        step()
        if traced:
            q, trace = refine(image, **given, device=device, return_trace=True)
        else:
            q, trace = refine(image, **given, device=device), None
        step()
    if save == "labels":
        labels = q > 0.5 if kind in BINARY else q.argmax(0)
        return Refined(labels, None), trace
    return Refined(None, q), trace


def _whole(source: Source) -> np.ndarray:
    """The whole array; [*S] for an image with one channel."""
    return np.ascontiguousarray(source[tuple(slice(0, n) for n in source.shape)])
