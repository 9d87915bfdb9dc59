"""Small runs of training for the tests of `tritoncrf.models`."""

import csv

import torch

from tritoncrf.models import checkpoints, config, data, training
from tritoncrf.models.distributed import World

RESNET = {"name": "ResNetFCN", "depth": 18, "width": 0.125}
FCN = {"name": "FCN8s", "width": 1 / 16, "dropout": 0.0, "pixels": "imagenet", "score_init": "msra"}
CONVCRF = {
    "name": "ConvCRF",
    "window_size": 3,
    "blur": 1,
    "theta_smooth": 1.0,
    "theta_space": 3.0,
    "theta_color": 13.0,
    "weight_smooth": 0.5,
    "weight_appearance": 0.5,
    "compatibility": True,
}
SGD = {"name": "sgd", "lr": 0.01, "weight_decay": 1e-3}


def phase(train="unary", **others):
    optimizer = {} if train == "statistics" else {"optimizer": SGD}
    return {"name": train, "train": train, "epochs": 1, "batch": 2, **optimizer, **others}


def settings(*phases, network=RESNET, **others):
    table = {"network": network, "data": {"format": "folder", "workers": 0}, "phases": list(phases), **others}
    return config.parse(table, "test")


def trainer(found, root, folder, resume=False):
    splits = {name: data.folder(root, split) for name, split in (("train", "train"), ("validate", "val"))}
    if found.data.held_out:
        splits["train"], splits["held_out"] = data.held_out(splits["train"], found.data.held_out)
    torch.manual_seed(found.seed)
    model = config.build(found, 3, "test")
    augment = config.augmentation(found, "test")
    return training.Trainer(found, model, splits, augment, folder, World(torch.device("cpu")), resume)


def state(folder, name="last.pt"):
    return checkpoints.read(folder / name)["model"]


def rows(folder):
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


class Killed(Exception):
    pass
