"""Images and labels: sources, splits, batches, and the views in which they are shown."""

from retinue.data import views
from retinue.data.dataset import Data, Split, few_labels, from_arrays, open
from retinue.data.loader import Batch, Loader
from retinue.data.preprocessing import BadImageError, Preprocessing, decode

__all__ = ["BadImageError", "Batch", "Data", "Loader", "Preprocessing", "Split", "decode", "few_labels", "from_arrays", "open", "views"]
