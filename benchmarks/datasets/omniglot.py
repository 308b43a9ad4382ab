"""Omniglot: handwritten characters of 50 alphabets, 20 drawings each, every quarter turn a class of its own."""

from pathlib import Path

from metazoo.data.dataset import Count, DataSet, Download, read_splits
from metazoo.data.layouts import class_folders

AUTHORS = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"

DATASET = DataSet(
    name="omniglot",
    title="Omniglot",
    citation=(
        "Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction. "
        "Science 350, 2015. Split: Vinyals et al.: Matching networks for one shot learning. NeurIPS 2016."
    ),
    terms="MIT licence.",
    where=(
        "It is read from images_background.zip and images_evaluation.zip (github.com/brendenlake/omniglot, in python), "
        "or from folders or archives of Alphabet/characterNN folders; --download fetches the two zips."
    ),
    channels=1,
    size=28,
    splits=read_splits(Path(__file__).with_name("splits") / "omniglot.txt"),
    expected={"train": Count(4_112, 82_240), "val": Count(688, 13_760), "test": Count(1_692, 33_840)},
    images_per_class=20,
    resample="lanczos",
    inverted=True,
    rotations=(0, 90, 180, 270),
    recognisers=(class_folders,),
    downloads=(
        Download(f"{AUTHORS}/images_background.zip", md5="68d2efa1b9178cc56df9314c21c6e718"),
        Download(f"{AUTHORS}/images_evaluation.zip", md5="6b91aef0f799c5bb55b94e3f2daec811"),
    ),
)
