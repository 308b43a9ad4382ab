"""CIFAR-FS: CIFAR-100's 100 classes, divided for few-shot learning."""

from pathlib import Path

from metazoo.benchmarks.datasets import cifar100
from metazoo.data.dataset import Count, DataSet, read_splits
from metazoo.data.layouts import class_folders

DATASET = DataSet(
    name="cifar_fs",
    title="CIFAR-FS",
    citation=(
        "Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers. ICLR 2019. "
        "Images: Krizhevsky: Learning multiple layers of features from tiny images. 2009."
    ),
    terms="CIFAR-100 has no formal licence; cite the report.",
    where=(
        "It is read from cifar-100-python.tar.gz or cifar-100-binary.tar.gz (www.cs.toronto.edu/~kriz/cifar.html), "
        "or from folders or archives of its 100 class folders; --download fetches the first."
    ),
    channels=3,
    size=32,
    splits=read_splits(Path(__file__).with_name("splits") / "cifar_fs.txt"),
    expected={"train": Count(64, 38_400), "val": Count(16, 9_600), "test": Count(20, 12_000)},
    digests={
        "train": "67e650d6fa3b7c76f2009111eefbfcf4040987004b48ed47156660cfca838035",
        "val": "6fd89ae4b8db84f831eb20de29fc6db7fb131bbccdfe18434d225c0f2c118250",
        "test": "d09324509d9ad892c23ecc7f4b51b11c9bab247a850cf036e0e1ae9be2f09d29",
    },
    images_per_class=600,
    ordered_by="content",
    classes_of="cifar100",
    moments=((0.5071, 0.4847, 0.4408), (0.2675, 0.2565, 0.2761)),  # as CxGrad's data loader has them
    recognisers=(cifar100.python_archive, cifar100.binary_archive, class_folders),
    downloads=(cifar100.ARCHIVE,),
)
