"""ADE20K's scene parsing benchmark (Zhou et al. 2017) with its 150 classes."""

from dataclasses import replace
from pathlib import Path

from tritoncrf.checks import expect_choice
from tritoncrf.files import FileError
from tritoncrf.models.augment import VOID
from tritoncrf.models.data.folder import folder
from tritoncrf.models.data.labelled import Examples
from tritoncrf.models.data.listing import IMAGES, MASKS, expect_folder, files_of, paired

# For each class, the first of its names in objectInfo150.txt.
ADE20K = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, "
    "apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, "
    "conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, "
    "cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, "
    "blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, "
    "bulletin board, shower, radiator, glass, clock, flag"
)
ADE20K_CLASSES = tuple(ADE20K.split(", "))
ADE20K_TABLE = (VOID, *range(len(ADE20K_CLASSES)))  # 0 is "other objects"
ADE20K_SPLITS = {"train": "training", "val": "validation"}


def ade20k(root: str | Path, split: str) -> Examples:
    """ADE20K with the 150 classes of scene parsing; 0 in its masks is void, and 1 is the first class.

    Args:
        root: the folder `ADEChallengeData2016`, with `images/training`, `annotations/training` and the same of
            `validation`; or photos and such masks as `folder` reads them.
        split: "train" (20,210 photos) or "val" (2,000); for plain folders, any name.
    """
    root = expect_folder(Path(root))
    if any(root.glob("index_ade20k.*")):
        raise FileError(f"{root}: expected ADEChallengeData2016, got the full ADE20K, whose masks have another format")
    if not (root / "annotations").is_dir():
        plain = folder(root, split, ADE20K_CLASSES, ())
        return replace(plain, table=ADE20K_TABLE)
    part = ADE20K_SPLITS[expect_choice("split", split, ADE20K_SPLITS)]
    image_folder, mask_folder = root / "images" / part, root / "annotations" / part
    images, masks = files_of(image_folder, IMAGES), files_of(mask_folder, MASKS)
    return Examples(paired(images, masks, image_folder, mask_folder), ADE20K_CLASSES, void=(), table=ADE20K_TABLE)
