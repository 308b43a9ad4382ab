"""CUB-200-2011 in 100 / 50 / 50 classes, cut to bounding boxes."""

from metazoo.benchmarks.datasets.birds import bird_set
from metazoo.data.dataset import Count

DATASET = bird_set(
    name="cub_cropped",
    title="CUB (100/50/50, cropped)",
    split="cub",
    split_from=(
        "Chen, Liu, Kira, Wang, Huang: A closer look at few-shot classification. ICLR 2019; every second class is for "
        "training, of the others one is for validation and the next for testing"
    ),
    counts=(Count(100, 5_885), Count(50, 2_950), Count(50, 2_953)),
    cropped=True,
)
