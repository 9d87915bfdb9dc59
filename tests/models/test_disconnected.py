"""The disconnected CRF: its settings by a search on a grid."""

import numpy as np
import pytest
import torch

from tritoncrf.models import metrics
from tritoncrf.models.disconnected import LAYERS
from tritoncrf.models.scored import Scored
from tritoncrf.models.tuning import disconnected, grid

C = 3


def scored(count=2, noise=0.7, size=(9, 12)):
    """Photos of three stripes, logits of the right class that noise blurs, and the stripes, some of them unknown."""
    draw = np.random.default_rng(0)
    truth = np.repeat([[0, 1, 2]], size[0], 0).repeat(size[1] // 3, 1)
    found = []
    for n in range(count):
        labels = np.roll(truth, n, 1)
        image = (80 * labels[..., None] + draw.integers(20, 24, (*labels.shape, 3))).astype(np.uint8)
        logits = (np.eye(C)[labels] + noise * draw.normal(size=(*labels.shape, C))).transpose(2, 0, 1)
        known = labels.copy()
        known[:1] = 255
        found.append(Scored(image, {"logits": torch.from_numpy(logits).float()}, known))
    return found


def miou(items, method, settings):
    total = 0
    for item in items:
        scores = item.scores["logits"][None]
        if settings is not None:
            image = torch.from_numpy(item.image).permute(2, 0, 1)[None]
            scores = LAYERS[method](C, **settings).eval()(scores, image)
        total = total + metrics.confusion_matrix(scores.argmax(1)[0], torch.from_numpy(item.truth), C)
    return metrics.mean_iou(total)


@pytest.mark.parametrize("method", LAYERS)
def test_the_settings_are_those_of_a_layer_and_no_neighbour_is_better(method):
    items = scored()
    options = {"window": {"window_size": 5, "blur": 1}, "lattice": {"test_iterations": 3}}.get(method, {})
    found = disconnected(items, C, method, **options)
    with torch.no_grad():
        assert found.score == miou(items, method, found.settings)
        assert found.alone == miou(items, method, None)
    assert found.score > found.alone + 0.05 and found.on_edge == ()
    assert found.score == max(trial.value for trial in found.trials)
    assert options.items() <= found.settings.items()
    free = [name for name in found.settings if len({trial.parameters[name] for trial in found.trials}) > 1]
    assert len(free) == 3
    for name in free:
        values = sorted({trial.parameters[name] for trial in found.trials})
        least = name == "radius" and found.settings[name] == 1
        assert values[0] < found.settings[name] < values[-1] or least


def test_what_is_fixed_is_not_searched():
    found = disconnected(scored(1), C, theta_color=30.0, theta_space=5.0, test_iterations=1)
    assert {trial.parameters["theta_color"] for trial in found.trials} == {30.0}
    assert len(found.trials) < 2 * grid.WIDEST + 2


def test_positions_start_at_a_share_of_the_diagonal():
    found = disconnected(scored(1), C, test_iterations=0)
    assert found.trials[0].parameters == {
        "theta_space": 0.75, "theta_color": 5.0, "weight_appearance": 1.0, "theta_smooth": 0.075, "weight_smooth": 1.0,
        "test_iterations": 0,
    }  # fmt: skip
    assert len(found.trials) == 27 and found.score == found.alone  # without an iteration all is equal


def test_an_edge_that_the_search_may_not_pass_is_named(monkeypatch):
    assert disconnected(scored(), C, theta_space=3.0, theta_color=30.0).on_edge == ()
    monkeypatch.setattr(grid, "WIDEST", 1)
    found = disconnected(scored(), C, theta_space=3.0, theta_color=30.0)
    assert found.on_edge == ("weight_appearance",) and found.settings["weight_appearance"] == 2.0


@pytest.mark.parametrize("change, error, message", [
    ({"scored": []}, ValueError, "^scored: expected one image or more, got none"),
    ({"method": "exact"}, ValueError, "^method: expected one of 'lattice', 'window', 'guided', got 'exact'"),
    ({"measure": "dice"}, ValueError, "^measure: expected one of 'miou'"),
    ({"theta_colour": 3}, TypeError, "theta_colour"),
])  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        disconnected(**{"scored": scored(1), "num_classes": C, **change})
