"""Images: reading, writing, degrading, and cutting crops for calibration and training."""

from csa2glmha.data.crops import ImageSource, TrainingCrops, calibration_crops
from csa2glmha.data.degrade import Degradation, parse_degradation
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.images import MemoryImages, bundled_images, read_image, write_image

__all__ = [
    "Degradation",
    "ImageSet",
    "ImageSource",
    "MemoryImages",
    "TrainingCrops",
    "bundled_images",
    "calibration_crops",
    "parse_degradation",
    "read_image",
    "write_image",
]
