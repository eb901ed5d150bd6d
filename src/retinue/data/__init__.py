"""Images and labels: sources, splits, batches, and the views in which they are shown."""

from retinue.data import views
from retinue.data.annotated import open_annotated
from retinue.data.annotations import SyntheticImageDataset, read_annotations, write_annotations
from retinue.data.dataset import Data, Split, few_labels, from_arrays, open
from retinue.data.loader import Batch, Loader
from retinue.data.preprocessing import BadImageError, Preprocessing, decode

__all__ = [
    "BadImageError",
    "Batch",
    "Data",
    "Loader",
    "Preprocessing",
    "Split",
    "SyntheticImageDataset",
    "decode",
    "few_labels",
    "from_arrays",
    "open",
    "open_annotated",
    "read_annotations",
    "views",
    "write_annotations",
]
