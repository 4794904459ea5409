"""Sources of samples: every public function of this package's modules is a built-in by its name.

A source gives the samples as they are, before anything is split. One's own is
`package.module:factory`, any function that returns a `Source`.
"""

from fedkd.samples import Labels, Samples, Source
from fedkd.sources.arrays import digits, npz
from fedkd.sources.cifar import cifar10, cifar100
from fedkd.sources.files import csv, image_folder, parquet
from fedkd.sources.hub import hugging_face
from fedkd.sources.mnist import idx

__all__ = [
    "Labels",
    "Samples",
    "Source",
    "cifar10",
    "cifar100",
    "csv",
    "digits",
    "hugging_face",
    "idx",
    "image_folder",
    "npz",
    "parquet",
]
