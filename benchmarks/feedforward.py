"""Training step and peak memory of our layers without time or attention against Keras' built-in ones.

    python -m benchmarks.feedforward                            # one table a backend
    python -m benchmarks.feedforward --backends torch --threads 2 --layers Conv2D Dropout

How a step is measured: see `benchmarks.interleaved`. Sizes are those of a recipe's middle: a ResNet-20's
first stage (batch 128, 32x32, 16 channels) for images, a small transformer's activations (batch 32, 128
steps, 256 features) for the rest. Figures and what was tried and not kept: `results/layers/layers.md`.
"""

from benchmarks.interleaved import main
from benchmarks.layer_step import LayerStep

IMAGES = (128, 32, 32, 16)
FEATURES = (32, 128, 256)

CASES = {
    "Dense": LayerStep(lambda m: m.Dense(256, activation="relu"), FEATURES),
    "Conv2D": LayerStep(lambda m: m.Conv2D(16, 3, padding="same"), IMAGES),
    "Conv2D in groups": LayerStep(lambda m: m.Conv2D(16, 3, padding="same", groups=4), IMAGES),
    "DepthwiseConv2D": LayerStep(lambda m: m.DepthwiseConv2D(3, padding="same"), IMAGES),
    "Conv2DTranspose": LayerStep(lambda m: m.Conv2DTranspose(16, 3, 2, padding="same"), (128, 16, 16, 16)),
    "MaxPooling2D": LayerStep(lambda m: m.MaxPooling2D(2), IMAGES),
    "GlobalAveragePooling2D": LayerStep(lambda m: m.GlobalAveragePooling2D(), IMAGES),
    "BatchNormalization": LayerStep(lambda m: m.BatchNormalization(), IMAGES, {"training": True}),
    "LayerNormalization": LayerStep(lambda m: m.LayerNormalization(), FEATURES),
    "GroupNormalization": LayerStep(lambda m: m.GroupNormalization(4), IMAGES),
    "RMSNormalization": LayerStep(lambda m: m.RMSNormalization(), FEATURES),
    "Dropout": LayerStep(lambda m: m.Dropout(0.1), FEATURES, {"training": True}),
    "SpatialDropout2D": LayerStep(lambda m: m.SpatialDropout2D(0.1), IMAGES, {"training": True}),
    "GaussianNoise": LayerStep(lambda m: m.GaussianNoise(0.1), FEATURES, {"training": True}),
}

if __name__ == "__main__":
    main(__spec__.name)
