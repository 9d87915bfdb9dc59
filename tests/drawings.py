"""What can be seen in a figure of matplotlib."""

import io

import numpy as np
from PIL import Image


def picture(figure) -> np.ndarray:
    """Its pixels, [H, W, 3]."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.array(Image.open(file).convert("RGB"))


def texts(figure) -> list[str]:
    """Titles, subtitles and other words in the axes, and those of the legends."""
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return shown + [text.get_text() for legend in legends if legend for text in legend.get_texts()]
