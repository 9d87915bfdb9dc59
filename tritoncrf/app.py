"""`tritoncrf app`: a local web page that shows the effect of each setting of `refine` on one image.

The page refines whenever a control changes, and shows the Python code and the command that give exactly the same
result. It needs no network: everything that the browser loads comes from this process.
"""

import argparse
import errno
import html
import math
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tritoncrf import demo
from tritoncrf.actions import class_name, settings_of
from tritoncrf.commands import CommandError
from tritoncrf.figures import MOST_PIXELS, grey_of, overlay, palette
from tritoncrf.options import ARGUMENTS, SHARES, TEXTS
from tritoncrf.session import MOST_EXACT, READING, UNSEEN, Outcome, Session, Settings, plain, problem_of

if TYPE_CHECKING:
    import gradio

__all__ = ["serve"]

THETAS = ("theta_space", "theta_smooth")  # these may be a share of the image's diagonal
PIXELS, SHARE = "pixels", "% of the diagonal"
KEPT = 60, 600  # seconds: how often old pictures are deleted, and from which age
MOST_ROWS = 24  # classes in the table
STYLE = """
.gradio-container {max-width: 1680px !important; margin: 0 auto}
h3 {margin: 0 !important}
#report p {margin: 0 0 .4em}
#report .first {font-size: 1.15em; font-weight: 600}
#report .doubt {padding: .4em .7em; border-left: 4px solid #E69F00; background: #E69F0022}
#report table {width: auto; border-collapse: collapse; font-variant-numeric: tabular-nums}
#report :is(table, tr, th, td) {border: 0 !important}
#report :is(th, td) {padding: .15em 1.2em .15em 0; text-align: right}
#report :is(th, td):first-child {text-align: left}
#report i {display: inline-block; width: .9em; height: .9em; margin-right: .5em; border: 1px solid #9CA3AF;
  vertical-align: -.1em}
#lines [class*="cm-"] {min-height: 0 !important}
#lines .cm-gutters {display: none}
@media (max-width: 760px) {
  .gradio-container {overflow: visible !important}
  #main {flex-direction: column; flex-wrap: nowrap}
  #left, #pictures {display: contents}
  #main > *, #left > *, #pictures > * {width: 100%; min-width: 0 !important}
  #photo {order: 8}
  #lines {order: 9}
  #wipe {position: sticky; top: 0; z-index: 50}
}
"""


def serve(options: argparse.Namespace) -> None:
    """Serve the page until it is interrupted; bad input is an error before the server starts."""
    _expect_gradio()
    session = Session(problem_of(options))
    given = {name: value for name, value in settings_of(options).items() if name not in READING}
    if options.image is None and not given:
        given = dict(demo.SETTINGS)
    start = session.problem.start(given)
    if start["method"] not in session.methods:
        got = f"{math.prod(session.problem.image.shape[:2]):,}"
        raise CommandError(f"--method: expected at most {MOST_EXACT:,} pixels for exact on a CPU, got {got}")
    session.outcome(tuple(start.items()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C, which removes the pictures
    with tempfile.TemporaryDirectory() as pictures_shown, _listening(options.host, options.port) as listener:
        os.environ["GRADIO_TEMP_DIR"] = pictures_shown
        host, port = listener.getsockname()[:2]
        server = _server(page(session, start))
        print(f"http://{f'[{host}]' if ':' in host else host}:{port} shows the page; Ctrl-C ends it", flush=True)
        server.run([listener])


def _expect_gradio() -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError('app needs Gradio: pip install "tritoncrf[app]"') from None


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise CommandError(f"--port: expected 0 to 65535, got {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise CommandError(f"--host: expected an address of this machine, got {host}: {error.strerror}") from None
    try:
        if os.name == "posix":  # reuse the port of a server that has just ended; elsewhere this would share ports
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"--port: expected a free port of {host}, or 0 for any, got {port}, which is in use"
            ) from None
        raise CommandError(f"--host, --port: {host} port {port}: {error.strerror}") from None
    return listener


def _server(blocks: "gradio.Blocks") -> Any:
    import fastapi
    import gradio
    import uvicorn

    app = gradio.mount_gradio_app(
        fastapi.FastAPI(), blocks, path="/", head=f"<style>{STYLE}</style>", footer_links=[], run_history=False,
        ssr_mode=False,
    )  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


# Results -------------------------------------------------------------------------------------------------------


def pictures(image: np.ndarray, *maps: np.ndarray) -> Iterator[np.ndarray]:
    """The photo, then the labels over it, as uint8 [h, w, 3], no larger than a screen."""
    step = -(-max(image.shape[:2]) // MOST_PIXELS)
    small = image[::step, ::step]
    yield small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2)
    grey = grey_of(small)
    for labels in maps:
        yield np.round(255 * overlay(grey, labels[::step, ::step])).astype(np.uint8)


def report(outcome: Outcome, kind: str, names: Sequence[str] = ()) -> str:
    """HTML: what changed, and the share of each class."""
    first, *others = (html.escape(note) for note in outcome.notes)
    shares = [(c, pair) for c, pair in enumerate(zip(outcome.summary.before, outcome.summary.after)) if any(pair)]
    shares.sort(key=lambda row: -row[1][1])
    rows = [
        f'<tr><td><i style="background:rgb{tuple(map(int, palette()[c % 256]))}"></i>'
        f"{html.escape(class_name(c, kind, names))}</td><td>{old:.2%}</td><td>{new:.2%}</td></tr>"
        for c, (old, new) in shares[:MOST_ROWS]
    ]
    if len(shares) > MOST_ROWS:
        rows.append(f"<tr><td>and {len(shares) - MOST_ROWS} more</td><td></td><td></td></tr>")
    return "".join(
        [
            f'<p class="first">{first}</p>',
            f"<p>{'; '.join(others)}</p>",
            *(f'<p class="doubt">{html.escape(_by_arguments(line))}</p>' for line in outcome.doubts),
            "<table><thead><tr><th>class</th><th>before</th><th>after</th></tr></thead>",
            f"<tbody>{''.join(rows)}</tbody></table>",
        ]
    )


def _by_arguments(text: str) -> str:
    """A message with the names of the controls in place of the options."""
    return re.sub(r"--([a-z-]+)", lambda option: option[1].replace("-", "_"), text)


# The controls -----------------------------------------------------------------------------------------------------


def slider(name: str, value: float | str) -> dict[str, Any]:
    """The state of an argument's slider, or of its number field: a value, and a range that contains it."""
    share = isinstance(value, str)
    number = float(value.removesuffix("%")) if isinstance(value, str) else value
    numbers = SHARES if share else TEXTS[name].numbers
    if numbers is None:
        return {"value": number}
    low, high, step = numbers
    return {"minimum": min(low, number), "maximum": max(high, number), "step": step, "value": number}


def value_of(number: float, unit: str = PIXELS) -> int | float | str:
    """The argument of `refine` for a control's number, without the rounding errors of the browser."""
    found = plain(float(f"{number:.10g}"))
    return f"{found}%" if unit == SHARE else found


def unit_of(value: object) -> str:
    return SHARE if isinstance(value, str) else PIXELS


def converted(number: float, unit: str, diagonal: float) -> float | str:
    """A bandwidth converted from the other unit."""
    other = number / diagonal * 100 if unit == SHARE else number * diagonal / 100
    return value_of(float(f"{other:.3g}"), unit)


def page(session: Session, start: Settings) -> "gradio.Blocks":
    """The page in its initial state."""
    import gradio as gr

    problem = session.problem
    height, width = session.before.shape
    diagonal = math.hypot(height, width)
    names = [name for name, entry in ARGUMENTS.items() if name not in UNSEEN and problem.kind in entry.scores]
    knobs: dict[str, Any] = {}
    units: dict[str, Any] = {}
    one_at_a_time = threading.Lock()

    def settings(method: str, *values: Any) -> dict[str, Any]:
        """The settings from the method's control and the others, in their order."""
        numbers, chosen = dict(zip(knobs, values)), dict(zip(units, values[len(knobs) :]))
        if empty := [n for n in problem.knobs(method) if numbers[n] is None]:
            raise ValueError(f"{', '.join(empty)}: expected a number, got none")
        return {"method": method, **{n: value_of(numbers[n], chosen.get(n, PIXELS)) for n in problem.knobs(method)}}

    def shown(given: Settings) -> list[Any]:
        outcome = session.outcome(tuple(given.items()))
        _, before, after = pictures(problem.image, session.before, outcome.after)
        return [(before, after), report(outcome, problem.kind, problem.names), *problem.lines(given)]

    def named(given: Settings) -> str | None:
        """The name of the preset that these settings are."""
        return next((name for name, preset in session.presets(given["method"], start).items() if preset == given), None)

    def run(*values: Any) -> list[Any]:
        try:
            given = settings(*values)
            with one_at_a_time:
                return [*shown(given), named(given)]
        except (ValueError, TypeError, MemoryError) as error:
            text = " ".join(_by_arguments(str(error)).split())
            # Keep the picture, and remove the code that would give another.
            return [gr.skip(), f'<p class="doubt">{html.escape(text)}</p>', *[f"# {text}"] * 2, None]

    def moved_to(given: Settings) -> list[Any]:
        """An update of each control to the given settings."""
        visible = problem.knobs(given["method"])
        return [
            *(gr.update(visible=n in visible, **(slider(n, given[n]) if n in given else {})) for n in knobs),
            *(gr.update(visible=n in visible, **({"value": unit_of(given[n])} if n in given else {})) for n in units),
        ]

    def switch(method: str) -> list[Any]:
        """Switch to the method's own defaults: a weight that suits one method may be far too large for another."""
        presets = session.presets(method, start)
        return [gr.update(choices=list(presets), value="defaults"), *moved_to(presets["defaults"])]

    def choose(moves: int, method: str, preset: str) -> list[Any]:
        return [moves + 1, *moved_to(session.presets(method, start)[preset])]

    def convert(name: str, moves: int, number: float | None, unit: str) -> list[Any]:
        return [
            moves + 1,
            gr.skip() if number is None else gr.update(**slider(name, converted(number, unit, diagonal))),
        ]

    first = shown(start)
    with gr.Blocks(title="tritoncrf", analytics_enabled=False, fill_width=True, delete_cache=KEPT) as blocks:
        gr.HTML(f"<h3>tritoncrf: {html.escape(problem.stem)}, {width} x {height} pixels</h3>", padding=False)
        with gr.Row(elem_id="main"):
            with gr.Column(scale=5, min_width=340, elem_id="left"):
                with gr.Row(elem_id="pictures"):
                    photo = next(pictures(problem.image))
                    gr.Image(
                        photo, label="photo", format="png", interactive=False, buttons=[], min_width=300,
                        elem_id="photo",
                    )  # fmt: skip
                    wipe = gr.ImageSlider(
                        first[0], label="input | refined", format="png", interactive=False, buttons=["fullscreen"],
                        min_width=300, elem_id="wipe",
                    )  # fmt: skip
                words = gr.HTML(first[1], elem_id="report")
                with gr.Column(elem_id="lines"):
                    code: dict[str, Any] = {
                        "interactive": False, "buttons": ["copy"], "show_line_numbers": False, "wrap_lines": True,
                        "lines": 1,
                    }  # fmt: skip
                    python = gr.Code(first[2], language="python", label="Python", elem_id="python", **code)
                    command = gr.Code(first[3], language="shell", label="command line", elem_id="command", **code)
            with gr.Column(scale=3, min_width=340):
                with gr.Row():
                    method = gr.Dropdown(session.methods, value=start["method"], label="method", min_width=120)
                    presets = list(session.presets(start["method"], start))
                    preset = gr.Dropdown(presets, value=named(start), label="preset", min_width=120)
                for name in names:
                    value, visible = (
                        start.get(name, ARGUMENTS[name].value(start["method"], problem.kind)),
                        name in start,
                    )
                    kind = gr.Number if TEXTS[name].numbers is None else gr.Slider
                    knobs[name] = kind(
                        **slider(name, value), label=name, info=TEXTS[name].meaning, visible=visible, elem_id=name
                    )
                    if name in THETAS:
                        units[name] = gr.Radio(
                            [PIXELS, SHARE], value=unit_of(value), show_label=False, visible=visible,
                            elem_id=f"{name}_unit",
                        )  # fmt: skip

        moves = gr.Number(0, visible="hidden")  # counts changes of several controls, or of one to the same number

        # Gradio's queue sometimes loses an answer if two events are close, and a control then stops working.
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "preprocess": False}
        inputs = [method, *knobs.values(), *units.values()]
        # One event for all controls, so that answers keep their order: of the changes during a refinement, only the
        # last is answered next.
        gr.on(
            [control.change for control in (method, *knobs.values(), moves)], run, inputs,
            [wipe, words, python, command, preset], trigger_mode="always_last", **quick,
        )  # fmt: skip
        method.input(switch, [method], [preset, *inputs[1:]], **quick)
        preset.input(choose, [moves, method, preset], [moves, *inputs[1:]], **quick)
        for name, unit in units.items():
            unit.input(partial(convert, name), [moves, knobs[name], unit], [moves, knobs[name]], **quick)
    return blocks
