"""The command line: python -m tritoncrf.models train | evaluate | predict.

Every bad input ends with exit code 2 and one line on stderr, before any training starts.
"""

import csv
import io
import sys
from pathlib import Path

import torch

from tritoncrf.commands import CommandError, Parser, run
from tritoncrf.files import replacing
from tritoncrf.models import checkpoints, config, data, evaluation, figures, prediction
from tritoncrf.models.distributed import world
from tritoncrf.models.training import Trainer

__all__ = ["main"]


def main(arguments=None) -> int:
    """Run one command; 0 if it worked, 2 if not."""
    return run(_parser(), arguments)


def _parser():
    parser = Parser(
        prog="python -m tritoncrf.models", description="Segmentation networks with CRFs: train, evaluate, predict."
    )
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | predict")

    command = commands.add_parser("train", help="train a network as a configuration says")
    names = ", ".join(sorted(path.stem for path in config.BUNDLED.glob("*.toml")))
    command.add_argument("config", metavar="CONFIG", help=f"a .toml file, or one of: {names}")
    command.add_argument("--data", metavar="FOLDER", help="the data set's folder; goes before the configuration's")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in RUN")
    command.add_argument("--weights", type=Path, metavar="FILE", help="start from: a checkpoint, or torchvision's .pth")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="change the configuration: data.workers=4, phases.unary.epochs=3; may be given several times",
    )  # fmt: skip
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="metrics of a network, with and without its CRF")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's best.pt or last.pt")
    command.add_argument("--data", metavar="FOLDER", help="the data set's folder; goes before the configuration's")
    command.add_argument("--split", metavar="NAME", help="the configuration's data.validate if left out")
    command.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="also write tables and figures there")
    _add_testing(command)
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("predict", help="label a folder of photos")
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's best.pt or last.pt")
    command.add_argument("photos", type=Path, metavar="PHOTOS", help="a folder of photos, or one photo")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER", help="for labels/ and overlays/")
    command.add_argument("--no-crf", action="store_true", help="the network's own labels")
    _add_testing(command)
    command.set_defaults(run=_predict)
    return parser


def _add_testing(command):
    command.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="sizes to see it at (1)")
    command.add_argument("--flip", action="store_true", help="also see every image mirrored")
    command.add_argument("--fuse", choices=evaluation.FUSIONS, default="mean", help="how these are put together (mean)")


def _train(options):
    settings = config.load(options.config, options.changes)
    source = str(options.config)
    with world() as ranks:
        splits = {
            "train": _examples(settings, settings.data.train, options.data),
            "validate": _examples(settings, settings.data.validate, options.data),
        }
        if ranks.rank == 0:
            for split in splits.values():
                split.check(progress=sys.stderr.isatty())
        ranks.wait()
        if settings.data.held_out:
            splits["train"], splits["held_out"] = data.held_out(splits["train"], settings.data.held_out, settings.seed)
        torch.manual_seed(settings.seed)
        model = config.build(settings, len(splits["train"].classes), source)
        if options.weights is not None:
            checkpoints.load_weights(model, options.weights)
        augment = config.augmentation(settings, source)
        Trainer(settings, model, splits, augment, options.out, ranks, options.resume).run()


def _evaluate(options):
    device = _device()
    network = checkpoints.trained(options.checkpoint, device)
    split = _examples(network.config, options.split or network.config.data.validate, options.data)
    if split.classes != network.classes:
        raise CommandError(f"{options.checkpoint}: expected a network for the classes of the data, got another's")
    split.check(progress=sys.stderr.isatty())
    _make_folder(options.out)
    images = data.Images(split, network.config.data.resize)
    batches = data.loader(images, data.Batches(len(images), 1, shuffle=False), network.config.data.workers)
    found = evaluation.evaluate(network.model, batches, len(split.classes), device, **_testing(options))
    results = {name: score.result(split.classes) for name, score in found.items()}
    for name, result in results.items():
        print(f"{TITLES[name] if len(results) > 1 else 'network'}, {len(split)} images\n{result}\n")
    if options.out is not None:
        _report(options.out, network, found, results)


TITLES = {"unary": "without CRF", "refined": "with CRF"}


def _report(out: Path, network, found, results):
    """Tables and figures of an evaluation."""
    _write(out / "results.csv", _csv(results))
    for name, score in found.items():
        _draw(figures.confusion(score.confusion.numpy(), network.classes), out / f"confusion_{name}.png")
    _draw(figures.trimap({TITLES[name]: result for name, result in results.items()}), out / "trimap.png")
    learnt = getattr(network.model.crf, "compatibility", None)
    if learnt is not None:
        _draw(figures.compatibility(learnt.detach().cpu().numpy(), network.classes), out / "compatibility.png")


def _csv(results) -> bytes:
    """A row a metric, a column for each of the results."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", *results])
    tables = [_metrics(result) for result in results.values()]
    for metric in tables[0]:
        writer.writerow([metric, *(table[metric] for table in tables)])
    return text.getvalue().encode()


def _metrics(result) -> dict[str, float]:
    numbers = {name: getattr(result, name) for name in ("miou", "pixel_accuracy", "mean_accuracy")}
    for name in ("boundary_iou", "trimap_miou", "trimap_accuracy"):
        numbers |= {f"{name} {width}": value for width, value in getattr(result, name).items()}
    return numbers | {f"iou {name}": value for name, value in zip(result.names, result.iou)}


def _predict(options):
    device = _device()
    paths = prediction.photos(options.photos)
    network = checkpoints.trained(options.checkpoint, device)
    _make_folder(options.out)
    output = "unary" if options.no_crf else "refined"
    resize = network.config.data.resize
    prediction.predict(network.model, paths, options.out, output, device, resize, **_testing(options))
    print(f"wrote {len(paths)} x labels and overlays in {options.out}")


def _testing(options) -> dict:
    if min(options.scales) <= 0:
        raise CommandError(f"--scales: expected numbers above 0, got {min(options.scales)}")
    return {"scales": tuple(options.scales), "flip": options.flip, "fuse": options.fuse}


def _examples(settings: config.Config, split: str, root: str | None) -> data.Examples:
    root = root or settings.data.root
    if not root:
        raise CommandError("--data: expected the data set's folder, here or as data.root in the configuration")
    given = {"voc": {"sbd": settings.data.sbd or None}, "folder": {"void": settings.data.void}}
    return data.examples(settings.data.format, root, split, **given.get(settings.data.format, {}))


def _device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _make_folder(path: Path | None):
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)


def _write(path: Path, content: bytes):
    with replacing(path) as file:
        file.write(content)


def _draw(figure, path: Path):
    with replacing(path) as file:
        figure.savefig(file, format="png")


if __name__ == "__main__":
    sys.exit(main())
