"""The real torchmetrics: metrics of every form of state, alone, in a model and in a collection, go on counting after a resume."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from fake_agent import FakeAgent
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC, MulticlassPrecision, MulticlassRecall

import holdfast


def collection() -> Any:
    """Accuracy, precision and recall share their states in groups of which one member is updated."""
    kinds = (MulticlassAccuracy, MulticlassPrecision, MulticlassRecall)
    return MetricCollection({k.__name__: k(num_classes=3) for k in kinds})


KINDS: dict[str, Any] = {
    "sums": lambda: MulticlassAccuracy(num_classes=3),
    "lists": lambda: MulticlassAUROC(num_classes=3),
    "a collection with groups": collection,
    "a model that holds some": lambda: nn.ModuleDict({"layer": nn.Linear(2, 2), "metric": collection()}),
}


def update(metric: Any, n: int) -> None:
    noise = torch.Generator().manual_seed(n)
    metric = metric["metric"] if isinstance(metric, nn.ModuleDict) and "metric" in metric else metric
    metric.update(torch.randn(5, 3, generator=noise).softmax(-1), torch.randint(3, (5,), generator=noise))


def result(metric: Any) -> Any:
    metric = metric["metric"] if isinstance(metric, nn.ModuleDict) and "metric" in metric else metric
    return (
        {k: v.item() for k, v in metric.compute().items()}
        if isinstance(metric, MetricCollection)
        else metric.compute().item()
    )


@pytest.mark.parametrize("name", KINDS)
def test_it_counts_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():

        def life() -> Any:
            metric = KINDS[name]()
            ckpt = holdfast.Checkpointer(metric=metric)
            ckpt.restore()
            for n in range(ckpt.boundary, 6):
                update(metric, n)
                ckpt.step()
            ckpt.finish()
            return result(metric)

        want = life()
        images = dict(agent.images[0])
        for at in range(1, 6):
            agent.restore_from = {0: [images[at]]}
            assert life() == want, f"resumed at boundary {at}"


def test_means_and_whole_lists(tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "agent", every_steps=1) as agent, agent.as_environment():
        got = []
        for _ in range(3):
            mean, values = MeanMetric(), CatMetric()
            ckpt = holdfast.Checkpointer(mean=mean, values=values)
            ckpt.restore()
            for _ in range(2):
                mean.update(float(ckpt.boundary))
                values.update(float(ckpt.boundary))
                ckpt.step()
            ckpt.finish()
            got.append((mean.compute().item(), values.compute().tolist()))
            agent.restore_from = {0: [agent.newest()]}
    assert got[-1] == (2.5, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
