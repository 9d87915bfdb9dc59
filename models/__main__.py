"""The command line: python -m tritoncrf.models train | evaluate | predict | experiments.

Every bad input ends with exit code 2 and one line on stderr, before any training starts.
"""

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tritoncrf.checks import renamed
from tritoncrf.commands import CommandError, Parser, device_found, run
from tritoncrf.files import save_figure, write
from tritoncrf.layers import Layer
from tritoncrf.models import checkpoints, config, data, evaluation, network_figures, prediction
from tritoncrf.models.augment import Augment
from tritoncrf.models.distributed import world
from tritoncrf.models.experiments import lattice_error, synthetic_task, trained
from tritoncrf.models.experiments.runs import Place
from tritoncrf.models.experiments.tables import EXPERIMENTS
from tritoncrf.models.metrics import Evaluation, Result
from tritoncrf.models.segmenter import Segmenter
from tritoncrf.models.training import Trainer

__all__ = ["main"]

ON_PHOTOS = {
    "synthetic": (synthetic_task.run, "noisy scores of label maps, refined by every filter"),
    "lattice": (lattice_error.run, "how far the lattice is from the exact sum"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 if not."""
    return run(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m tritoncrf.models", description="Segmentation networks with CRFs: train, evaluate, predict."
    )
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | predict | experiments")

    command = commands.add_parser("train", help="train a network as a configuration says")
    names = ", ".join(sorted(path.stem for path in config.BUNDLED.glob("*.toml")))
    command.add_argument("config", metavar="CONFIG", help=f"a .toml file, or one of: {names}")
    command.add_argument("--data", metavar="FOLDER", help="the data set's folder; goes before the configuration's")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in RUN")
    command.add_argument("--weights", type=Path, metavar="FILE", help="start from: a checkpoint, or torchvision's .pth")
    _add_changes(command, "data.workers=4, phases.unary.epochs=3")
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="metrics of a network, with and without its CRF")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's best.pt or last.pt")
    command.add_argument("--data", metavar="FOLDER", help="the data set's folder; goes before the configuration's")
    command.add_argument("--split", metavar="NAME", help="the configuration's data.validate if left out")
    command.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="also write tables and figures there")
    _add_changes(command, "data.sbd=SBD")
    _add_testing(command)
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("predict", help="label a folder of photos")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's best.pt or last.pt")
    command.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos, or one photo")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="for labels/ and overlays/")
    command.add_argument("--no-crf", action="store_true", help="the network's own labels")
    _add_testing(command)
    command.set_defaults(run=_predict)

    command = commands.add_parser("experiments", help="the papers' tables, at a small size")
    tables = command.add_subparsers(required=True, metavar=" | ".join((*ON_PHOTOS, *EXPERIMENTS)))
    for name, (run_on_photos, title) in ON_PHOTOS.items():
        command = tables.add_parser(name, help=title)
        command.add_argument(
            "--data", type=Path, metavar="FOLDER", help="with voc, camvid, coco_stuff; the demo's photo"
        )
        _add_report(command)
        command.set_defaults(run=_on_photos, name=name, run_on_photos=run_on_photos)
    for name, experiment in EXPERIMENTS.items():
        command = tables.add_parser(name, help=experiment.title)
        command.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="CamVid's")
        _add_report(command)
        command.add_argument("--full-size", action="store_true", help="ResNet-101 on 360 x 480: for a GPU")
        _add_changes(command, "seed=1, in all its runs")
        command.set_defaults(run=_experiment, name=name)
    return parser


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="for the report and its runs")


def _add_changes(command: argparse.ArgumentParser, examples: str) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help=f"change the configuration: {examples}; may be given several times",
    )  # fmt: skip


def _add_testing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="sizes to see it at (1)")
    command.add_argument("--flip", action="store_true", help="also see every image mirrored")
    command.add_argument("--fuse", choices=evaluation.FUSIONS, default="mean", help="how these are put together (mean)")


def _train(options: argparse.Namespace) -> None:
    with world() as ranks:
        ranks.first(lambda: _check(options))
        settings, source = config.load(options.config, options.changes), str(options.config)
        splits = _splits(settings, options.data)
        torch.manual_seed(settings.seed)
        model = config.build(settings, len(splits["train"].classes), source)
        if options.weights is not None:
            left_out = checkpoints.load_weights(model, options.weights)
            if left_out and ranks.rank == 0:
                print(f"{options.weights}: its network is taken; its CRF is another, and the run's starts anew")
        augment = config.augmentation(settings, source)
        ranks.first(lambda: _try(model, settings, splits, augment))
        Trainer(settings, model, splits, augment, options.out, ranks, options.resume).run()


def _check(options: argparse.Namespace) -> None:
    """All that can be known to be wrong before a network is built."""
    settings = config.load(options.config, options.changes)
    augment = config.augmentation(settings, str(options.config))
    splits = _splits(settings, options.data)
    sizes = {name: split.check(progress=sys.stderr.isatty()) for name, split in splits.items()}
    for phase in settings.phases:
        free = settings.data.resize is None and not (phase.augment and augment is not None and augment.crop)
        if free and phase.batch > 1 and len(sizes[phase.split]) > 1:
            raise CommandError(
                f"phases.{phase.name}.batch: expected 1, or data.resize or augment.crop, for images of several sizes, "
                f"got {phase.batch}"
            )


@torch.no_grad()
def _try(
    model: Segmenter, settings: config.Config, splits: Mapping[str, data.Examples], augment: Augment | None
) -> None:
    """One image of every kind through the network: what does not fit it shows before the training."""
    model.eval()
    kinds = {(phase.split, augment if phase.augment else None) for phase in settings.phases} | {("validate", None)}
    for split, changes in sorted(kinds, key=str):
        image = data.Images(splits[split], settings.data.resize, changes, settings.seed)[0]["image"]
        try:
            model(image[None])
        except ValueError as error:
            raise CommandError(f"{split} images of {image.shape[1]} x {image.shape[2]}: {error}") from error


def _splits(settings: config.Config, root: str | None) -> dict[str, data.Examples]:
    """The images of a run: "train", "held_out" where some are, "validate"."""
    found = {"train": _examples(settings, settings.data.train, root)}
    if settings.data.held_out:
        if settings.data.held_out >= len(found["train"]):
            raise CommandError(
                f"data.held_out: expected fewer than the {len(found['train'])} images of {settings.data.train!r}, "
                f"got {settings.data.held_out}"
            )
        # Whatever the run's seed: a CRF that learns on them must not meet images that its network has learnt from.
        found["train"], found["held_out"] = data.held_out(found["train"], settings.data.held_out)
    return found | {"validate": _examples(settings, settings.data.validate, root)}


def _evaluate(options: argparse.Namespace) -> None:
    device = device_found()
    network = checkpoints.trained(options.checkpoint, device)
    settings = config.changed(network.config, options.changes)
    split = _examples(settings, options.split or settings.data.validate, options.data)
    if split.classes != network.classes:
        raise CommandError(f"{options.checkpoint}: expected a network for the classes of the data, got another's")
    split.check(progress=sys.stderr.isatty())
    _make_folder(options.out)
    images = data.Images(split, settings.data.resize)
    batches = data.loader(images, data.Batches(len(images), 1, shuffle=False), settings.data.workers)
    found = evaluation.evaluate(network.model, batches, len(split.classes), device, **_testing(options))
    titles = {"unary": "without CRF", "refined": "with CRF"} if len(found) > 1 else {"refined": "network"}
    results = {titles[name]: score.result(split.classes) for name, score in found.items()}
    for title, result in results.items():
        print(f"{title}, {len(split)} images\n{result}\n")
    if options.out is not None:
        _report(options.out, network, found, results)


def _report(
    out: Path, network: checkpoints.Trained, found: Mapping[str, Evaluation], results: Mapping[str, Result]
) -> None:
    """Tables and figures of an evaluation."""
    write(out / "results.csv", _csv(results))
    for name, score in found.items():
        save_figure(out / f"confusion_{name}.png", network_figures.confusion(score.confusion, network.classes))
    save_figure(out / "trimap.png", network_figures.trimap(results))
    if isinstance(network.model.crf, Layer):
        cost = network.model.crf.cost.detach().cpu()
        save_figure(out / "compatibility.png", network_figures.compatibility(cost, network.classes))


def _csv(results: Mapping[str, Result]) -> bytes:
    """A row a metric, a column for each of the results."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *results])
    tables = [_metrics(result) for result in results.values()]
    for metric in tables[0]:
        writer.writerow([metric, *(table[metric] for table in tables)])
    return text.getvalue().encode()


def _metrics(result: Result) -> dict[str, float]:
    numbers = {name: getattr(result, name) for name in ("miou", "pixel_accuracy", "mean_accuracy")}
    for name in ("boundary_iou", "trimap_miou", "trimap_accuracy"):
        numbers |= {f"{name} {width}": value for width, value in getattr(result, name).items()}
    return numbers | {f"iou {name}": value for name, value in zip(result.names, result.iou)}


def _predict(options: argparse.Namespace) -> None:
    device = device_found()
    paths = prediction.photos(options.photos)
    network = checkpoints.trained(options.checkpoint, device)
    _make_folder(options.out)
    output = "unary" if options.no_crf else "refined"
    resize = network.config.data.resize
    prediction.predict(network.model, paths, options.out, output, device, resize, **_testing(options))
    print(f"wrote {len(paths)} x labels and overlays in {options.out}")


def _on_photos(options: argparse.Namespace) -> None:
    _make_folder(options.out)
    options.run_on_photos(options.data, options.out, device_found())
    print(f"wrote {options.out / options.name}.md")


def _experiment(options: argparse.Namespace) -> None:
    _make_folder(options.out)
    place = Place(options.data, options.out, options.full_size, tuple(options.changes))
    trained.run(options.name, place, device_found())
    print(f"wrote {options.out / options.name}.md")


def _testing(options: argparse.Namespace) -> evaluation.Testing:
    if min(options.scales) <= 0:
        raise CommandError(f"--scales: expected numbers above 0, got {min(options.scales)}")
    return {"scales": tuple(options.scales), "flip": options.flip, "fuse": options.fuse}


def _examples(settings: config.Config, split: str, root: str | None) -> data.Examples:
    root = root or settings.data.root
    if not root:
        raise CommandError("--data: expected the data set's folder, here or as data.root in the configuration")
    given: dict[str, dict[str, Any]] = {
        "voc": {"sbd": settings.data.sbd or None},
        "folder": {"void": settings.data.void},
    }
    with renamed("sbd", "data.sbd"):
        return data.examples(settings.data.format, root, split, **given.get(settings.data.format, {}))


def _make_folder(path: Path | None) -> None:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
