"""`python -m docs.gallery [FIGURE ...] [--out FOLDER]`: draws the pictures of the README and the documents.

`network` needs the scores of a network for the demo's photo, which are not part of the project: `--scores FILE`.
"""

import sys
import time
from pathlib import Path

from docs.gallery import failures, filter_rows, labels, layers, methods, network, parameters, volume
from docs.gallery.sheet import INCHES
from tritoncrf import commands, files

PIXELS, COLORS = 1200, 160  # of a file: its width
FIGURES = {
    "methods": methods.methods,
    "astronaut": methods.astronaut,
    "coffee": methods.coffee,
    "scan": methods.scan,
    "volume": volume.volume,
    "labels": labels.labels,
    "layers": layers.layers,
    "failures": failures.failures,
    "weights": filter_rows.weights,
    "parameters": parameters.parameters,
    "parameters-local": parameters.parameters_local,
}


def main(arguments=None) -> int:
    parser = commands.Parser(prog="python -m docs.gallery", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FIGURE", help=f"all, or some of {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent, help="an existing folder (docs)")
    parser.add_argument(
        "--scores", type=Path, metavar="FILE", help="for `network`: an .npz with a foreground [600, 512]"
    )
    parser.set_defaults(run=draw)
    return commands.run(parser, arguments)


def draw(options) -> None:
    figures = FIGURES if options.scores is None else {"network": lambda: network.network(options.scores), **FIGURES}
    if unknown := [name for name in options.names if name not in figures]:
        raise commands.CommandError(f"FIGURE: expected some of {', '.join(figures)}, got {', '.join(unknown)}")
    for name in options.names or figures:
        out = options.out / f"{name}.png"
        commands.check_output("--out", out, (".png",))
        started = time.perf_counter()
        try:
            figure = figures[name]()
        except ModuleNotFoundError as missing:
            if missing.name != "skimage":
                raise
            print(f"skipped {name}: its photo is scikit-image's, which the extra `gallery` installs")
            continue
        files.save_small_figure(out, figure, PIXELS / INCHES, COLORS)
        print(f"wrote {out}, {out.stat().st_size / 1000:.0f} kB, in {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
