"""CUB-200-2011 in the 140 / 30 / 30 classes of Meta-Dataset, cut to bounding boxes."""

from metazoo.benchmarks.datasets.birds import bird_set
from metazoo.data.dataset import Count

DATASET = bird_set(
    name="cub_140_30_30_cropped",
    title="CUB (140/30/30, cropped)",
    split="cub_140_30_30",
    split_from=(
        "Triantafillou et al.: Meta-Dataset: a dataset of datasets for learning to learn from few examples. ICLR 2020"
    ),
    counts=(Count(140, 8_239), Count(30, 1_779), Count(30, 1_770)),
    cropped=True,
)
