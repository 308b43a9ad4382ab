"""CIFAR-FS: CIFAR-100's 100 classes, divided for few-shot learning."""

from pathlib import Path

from metazoo.benchmarks.datasets import cifar100
from metazoo.dataset import Count, DataSet, read_splits
from metazoo.layouts import class_folders

DATASET = DataSet(
    name="cifar_fs",
    title="CIFAR-FS",
    citation=(
        "Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR 2019. "
        "Images: Krizhevsky: Learning multiple layers of features from tiny images. 2009."
    ),
    terms="CIFAR-100 has no formal licence; cite the report.",
    where=(
        "Give cifar-100-python.tar.gz or cifar-100-binary.tar.gz (from www.cs.toronto.edu/~kriz/cifar.html), "
        "or folders or archives of its 100 class folders; --download fetches the former."
    ),
    channels=3,
    size=32,
    splits=read_splits(Path(__file__).with_name("splits") / "cifar_fs.txt"),
    expected={"train": Count(64, 38_400), "val": Count(16, 9_600), "test": Count(20, 12_000)},
    images_per_class=600,
    ordered_by="content",
    recognisers=(cifar100.python_archive, cifar100.binary_archive, class_folders),
    downloads=(cifar100.ARCHIVE,),
)
