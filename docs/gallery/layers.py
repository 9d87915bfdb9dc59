"""The layers before training, and with the presets of the codes that were published with their papers."""

from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

import tritoncrf as tc
from docs.gallery import pictures
from docs.gallery.sheet import labelled, sheet
from tritoncrf.synthetic import noisy_scores

# As published: the layers' own initial parameters are too weak for such coarse noise.
CONV = {"theta_space": 80, "theta_color": 13, "weight_smooth": 3, "weight_appearance": 10}
RECURRENT = {"theta_space": 160, "theta_color": 3, "weight_smooth": 3, "weight_appearance": 5}


@torch.no_grad()
def layers() -> Figure:
    picture = pictures.hopper().halved().cropped(np.s_[0:200, 0:256])
    classes = len(picture.classes)
    scores = noisy_scores(picture.truth, classes)
    image = torch.from_numpy(picture.image).permute(2, 0, 1)[None]
    logits = torch.from_numpy(scores)[None].clamp(min=1e-5).log()
    quarter = F.interpolate(logits, scale_factor=1 / 4, mode="area")  # where SegModel runs its CRF

    def panel(title, layer, logits, remark):
        labels = layer.eval()(logits, image)[0].argmax(0).numpy()
        return labelled(title, picture, labels, remark)

    panels = [labelled("Input labels", picture, scores.argmax(0))]
    panels += [
        panel("ConvCRF", tc.ConvCRF(classes, **CONV), logits, "11 x 11, blur 4"),
        panel("CRFRNN", tc.CRFRNN(classes, **RECURRENT), logits, ""),
        panel("GuidanceCRF", tc.GuidanceCRF(classes), quarter, "at a quarter"),
        replace(labelled("Mask", picture, picture.truth), subtitle="drawn by hand"),
        panel("ConvCRF, preset", tc.ConvCRF(classes, 7, preset="released"), logits, "7 x 7, blur 4"),
        panel("CRFRNN, preset", tc.CRFRNN(classes, preset="released"), logits, ""),
        panel("GuidanceCRF, preset", tc.GuidanceCRF(classes, preset="released"), quarter, "at a quarter"),
    ]
    return sheet(panels, 4, picture)
