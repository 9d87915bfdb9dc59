"""The actions behind the commands of `tritoncrf.models.__main__`."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tritoncrf.actions import FIGURES
from tritoncrf.commands import CommandError, check_output, make_folder
from tritoncrf.devices import device_found
from tritoncrf.files import expect_apart, read_image, read_labels, save_figure, write
from tritoncrf.layers import Layer
from tritoncrf.models import checkpoints, config, data, evaluation, network_figures, prediction, testing, tuning
from tritoncrf.models.augment import VOID, Augment
from tritoncrf.models.distributed import world
from tritoncrf.models.experiments import defaults, lattice_error, synthetic_task, trained, video
from tritoncrf.models.experiments.runs import Place
from tritoncrf.models.metrics import Evaluation, Result
from tritoncrf.models.segmenter import Segmenter
from tritoncrf.models.splits import examples_of, splits_of
from tritoncrf.models.training import Trainer
from tritoncrf.models.weights import some
from tritoncrf.options import SCORES
from tritoncrf.readers import read_scores

__all__ = ["evaluate", "make_table", "measure", "predict", "train", "try_defaults", "tune"]


def train(options: argparse.Namespace) -> None:
    """`tritoncrf train`."""
    with world() as ranks:
        ranks.first(lambda: _check(options))
        settings, source = config.load(options.config, options.changes), str(options.config)
        splits = splits_of(settings, options.data)
        torch.manual_seed(settings.seed)
        model = config.build(settings, len(splits["train"].classes), source)
        if options.weights is not None:
            said = checkpoints.load_weights(model, options.weights)
            if ranks.rank == 0:
                for line in said:
                    print(f"{options.weights}: {line}")
        augment = config.augmentation(settings, source)
        ranks.first(lambda: _try(model, settings, splits, augment))
        Trainer(settings, model, splits, augment, options.out, ranks, options.resume).run()


def _check(options: argparse.Namespace) -> None:
    """Check everything that can be checked before a network is built."""
    settings = config.load(options.config, options.changes)
    augment = config.augmentation(settings, str(options.config))
    splits = splits_of(settings, options.data)
    if options.out.exists() and not options.out.is_dir():
        raise CommandError(f"--out: expected a folder, got the file {options.out}")
    for split in splits.values():
        expect_apart([options.out / "last.pt", options.out / "panels" / "epoch_0001.png"], split.files())
    contents = {name: split.check(progress=sys.stderr.isatty()) for name, split in splits.items()}
    seen = set().union(*(found.labels for name, found in contents.items() if name != "validate"))
    _expect_classes(splits["train"].classes, seen)
    for phase in settings.phases:
        free = settings.data.resize is None and not (phase.augment and augment is not None and augment.crop)
        if free and phase.batch > 1 and len(contents[phase.split].sizes) > 1:
            raise CommandError(
                f"phases.{phase.name}.batch: expected 1, or data.resize or augment.crop, for images of several sizes, "
                f"got {phase.batch}"
            )


def _expect_classes(classes: Sequence[str], labels: set[int]) -> None:
    """A mask of 0 and 255 marks the object by 255, which would be read as void."""
    if len(classes) < 2:
        raise CommandError(
            f"data: expected at least 2 classes, got {some(list(classes))}; beside one object, add a background class"
        )
    missing = [f"{n} ({name})" for n, name in enumerate(classes) if n not in labels]
    if missing and VOID in labels:
        raise CommandError(
            f"data.train: expected every class where some pixels are void, got none of class {some(missing)}; if "
            "masks mark an object by 255, change it to the index of its class, such as 1"
        )


@torch.no_grad()
def _try(
    model: Segmenter, settings: config.Config, splits: Mapping[str, data.Examples], augment: Augment | None
) -> None:
    """Run one image of every kind through the network, so that what does not fit fails before the training."""
    model.eval()
    kinds = {(phase.split, augment if phase.augment else None) for phase in settings.phases} | {("validate", None)}
    for split, changes in sorted(kinds, key=str):
        image = data.Images(splits[split], settings.data.resize, changes, settings.seed)[0]["image"]
        try:
            model(image[None])
        except ValueError as error:
            raise CommandError(f"{split} images of {image.shape[1]} x {image.shape[2]}: {error}") from error


def evaluate(options: argparse.Namespace) -> None:
    """`tritoncrf evaluate`."""
    device = device_found(options.device)
    networks, settings = testing.networks(options, device)
    crf = testing.disconnected(options, networks, device)
    split = examples_of(settings, options.split or settings.data.validate, options.data)
    if split.classes != networks[0].classes:
        first = options.checkpoints[0]
        raise CommandError(f"{first}: expected a network for the classes of the data, got one for others")
    split.check(progress=sys.stderr.isatty())
    if options.out is not None:
        make_folder("--out", options.out)
        expect_apart([options.out / "results.csv"], split.files())
    images = data.Images(split, settings.data.resize)
    batches = data.loader(images, data.Batches(len(images), 1, shuffle=False), settings.data.workers)
    models = [network.model for network in networks]
    found = evaluation.evaluate(models, batches, len(split.classes), device, **testing.views(options, crf))
    titles = {"unary": "without CRF", "refined": "with CRF"} if len(found) > 1 else {"refined": "network"}
    results = {titles[name]: score.result(split.classes) for name, score in found.items()}
    for title, result in results.items():
        print(f"{title}, {len(split)} images\n{result}\n")
    if options.out is not None:
        learned = models[0].crf if len(models) == 1 and crf is None else None
        _report(options.out, split.classes, learned, found, results)


def _report(
    out: Path, classes: Sequence[str], crf: torch.nn.Module | None, found: Mapping[str, Evaluation],
    results: Mapping[str, Result],
) -> None:  # fmt: skip
    """Write the tables and figures of an evaluation, and the compatibility matrix of a trained CRF."""
    write(out / "results.csv", _csv(results))
    for name, score in found.items():
        save_figure(out / f"confusion_{name}.png", network_figures.confusion(score.confusion, classes))
    save_figure(out / "trimap.png", network_figures.trimap(results))
    if isinstance(crf, Layer):
        save_figure(out / "compatibility.png", network_figures.compatibility(crf.cost.detach().cpu(), classes))


def _csv(results: Mapping[str, Result]) -> bytes:
    """One row per metric, one column per result."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *results])
    tables = [result.numbers() for result in results.values()]
    for metric in tables[0]:
        writer.writerow([metric, *(table[metric] for table in tables)])
    return text.getvalue().encode()


def predict(options: argparse.Namespace) -> None:
    """`tritoncrf predict`."""
    device = device_found(options.device)
    paths = prediction.photos(options.photos)
    make_folder("--out", options.out)
    outputs = prediction.outputs(paths, options.out)
    expect_apart(outputs, paths)
    old = [path for path in outputs if os.path.lexists(path)]
    if old and not options.force:
        raise CommandError(f"--out: expected a folder without these predictions, got one with {old[0]}; or --force")
    networks, settings = testing.networks(options, device)
    crf, models = testing.disconnected(options, networks, device), [network.model for network in networks]
    output = "unary" if options.no_crf else "refined"
    resize = settings.data.resize
    prediction.predict(models, paths, options.out, output, device, resize, **testing.views(options, crf))
    print(f"wrote labels and overlays of {len(paths)} photos to {options.out}")


def tune(options: argparse.Namespace) -> None:
    """`tritoncrf tune`."""
    check_output("--out", options.out, (".toml",))
    if options.figure is not None:
        check_output("--figure", options.figure, FIGURES)
    kind = next(kind for kind in SCORES if getattr(options, kind) is not None)
    folder = getattr(options, kind)
    photos = prediction.photos(options.images)
    files = {name: _by_stem(name, path) for name, path in ((f"--{kind}", folder), ("--truth", options.truth))}
    for name, found in files.items():
        if missing := next((path for path in photos if path.stem not in found), None):
            raise CommandError(f"{name}: expected a file for each photo, got none for {missing.name}")
    outputs = [path for path in (options.out, options.figure, options.study) if path is not None]
    expect_apart(outputs, [*photos, *(path for found in files.values() for path in found.values())])
    images, scores, truths = [], [], []
    how = options.resize, options.as_stored
    for path in photos:
        images.append(np.asarray(read_image(path, upright=not options.as_stored)))
        scores.append(read_scores(kind, files[f"--{kind}"][path.stem], path, images[-1].shape[:2], *how))
        truths.append(read_labels(files["--truth"][path.stem], upright=not options.as_stored))
        if truths[-1].shape != images[-1].shape[:2]:
            got, wanted = (" x ".join(map(str, x.shape[:2])) for x in (truths[-1], images[-1]))
            raise CommandError(f"--truth: expected the size of {path}, {wanted}, got {got}")
    given: dict[str, Any] = {kind: scores}
    if options.num_classes is not None:
        given["num_classes"] = options.num_classes
    with tqdm(desc="tune", unit="trial", total=options.folds * options.budget, disable=None) as bar:

        def said(line: str) -> None:
            bar.set_postfix_str(line, refresh=False)
            bar.update("trial" in line)

        tuned = tuning.tune(
            images, truths=truths, method=options.method, search=options.search, budget=options.budget,
            measure=options.measure, folds=options.folds, seed=options.seed, jobs=options.jobs, study=options.study,
            progress=said, **given,
        )  # fmt: skip
    if options.figure is not None:
        save_figure(options.figure, tuned.figure())
    write(options.out, tuned.toml().encode())
    print(tuned)
    print(f"wrote {options.out}")


def _by_stem(name: str, folder: Path) -> dict[str, Path]:
    """The files of a folder by name without suffix."""
    if not folder.is_dir():
        raise CommandError(f"{name}: expected a folder, got {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            if path.stem in found:
                other = found[path.stem].name
                raise CommandError(f"{name}: expected one file for each name, got {other} and {path.name}")
            found[path.stem] = path
    return found


def measure(options: argparse.Namespace) -> None:
    """`tritoncrf experiments synthetic | lattice`."""
    make_folder("--out", options.out)
    experiment = {"synthetic": synthetic_task, "lattice": lattice_error}[options.name]
    experiment.run(options.data, options.out, device_found())
    print(f"wrote {options.out / options.name}.md")


def try_defaults(options: argparse.Namespace) -> None:
    """`tritoncrf experiments defaults`."""
    make_folder("--out", options.out)
    defaults.run(options.data, options.out)
    print(f"wrote {options.out / 'defaults.md'}")


def try_video(options: argparse.Namespace) -> None:
    """`tritoncrf experiments video`."""
    make_folder("--out", options.out)
    video.run(options.data, options.out)
    print(f"wrote {options.out / 'video.md'}")


def make_table(options: argparse.Namespace) -> None:
    """`tritoncrf experiments NAME`."""
    make_folder("--out", options.out)
    if any(change.split("=")[0].strip() == "seed" for change in options.changes):
        raise CommandError("--set seed: expected none, since every run is trained with several; --seeds says how many")
    if options.seeds < 1:
        raise CommandError(f"--seeds: expected at least 1, got {options.seeds}")
    if options.data_format == "voc" and options.full_size:
        raise CommandError("--full-size: expected none with --data-format voc, which uses the papers' own size")
    if options.data_format == "camvid" and options.weights is not None:
        raise CommandError("--weights: expected none with --data-format camvid, whose runs start from random weights")
    large, changes = options.full_size, tuple(options.changes)
    place = Place(options.data, options.out, large, changes, options.seeds, options.data_format, options.weights)
    trained.run(options.name, place, device_found())
    print(f"wrote {options.out / options.name}.md")
