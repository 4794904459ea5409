"""Models for teachers and students: every public function here is a built-in model by its name.

All have the form `(shape, classes, *, parameters) -> nn.Module`: `shape` is that of one sample,
the output is logits [B, classes]. Weights are drawn by torch's defaults from its global generator,
which the caller seeds for that. All but the ResNet are one flat `nn.Sequential` of torch's own
layers, so that many clients can be trained in one batched pass. A sample too small for the layers,
or of the wrong rank, is a ValueError. One's own is `package.module:factory`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

Shape = tuple[int, ...]
Width = Annotated[int, Field(ge=1, le=65_536)]
Widths = Annotated[tuple[Width, ...], Field(max_length=256)]
Blocks = Annotated[int, Field(ge=1, le=256)]


def mlp(shape: Shape, classes: int, *, hidden: Widths = (64,)) -> nn.Module:
    """Fully connected layers with ReLU; without hidden layers it is logistic regression."""
    widths = (math.prod(shape), *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn(
    shape: Shape,
    classes: int,
    *,
    channels: Annotated[Widths, Field(min_length=1)] = (16, 32),
    hidden: Width = 64,
) -> nn.Module:
    """A block of 3x3 convolution, ReLU and 2x2 pooling for each of `channels`, then two layers.

    With the defaults 13,706 parameters for digits of 8x8 and 105,866 for 28x28.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((_channels("cnn", shape), *channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return _with_head("cnn", shape, layers, (hidden,), classes)


def lenet5(shape: Shape, classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max pooling in place of tanh and trained subsampling.

    61,706 parameters for 32x32 grey images; smaller ones are padded by 2 on every side, as 28x28
    ones are in the paper. Y. LeCun et al., Proc. IEEE 86(11), 1998.
    """
    inputs = _channels("lenet5", shape)
    padding = 2 if min(shape[1:]) < 32 else 0
    layers = [
        nn.Conv2d(inputs, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
    ]  # fmt: skip
    return _with_head("lenet5", shape, layers, (120, 84), classes)


def shao_cnn(shape: Shape, classes: int) -> nn.Module:
    """A small CNN of J. Shao et al. for MNIST: 21,840 parameters for 28x28 grey images.

    J. Shao, F. Wu, J. Zhang, Nature Communications 15, 2024, https://arxiv.org/abs/2304.01731.
    """
    layers = [
        nn.Conv2d(_channels("shao_cnn", shape), 10, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
    ]  # fmt: skip
    return _with_head("shao_cnn", shape, layers, (50,), classes)


def itahara_mnist_cnn(shape: Shape, classes: int) -> nn.Module:
    """The CNN of S. Itahara et al. for MNIST: 583,242 parameters for 28x28 grey images.

    Trains on batches of at least two samples (batch normalisation). The paper gives layers and the
    number of parameters; the order convolution, normalisation, ReLU, pooling is ours.
    S. Itahara et al., IEEE TMC 22(1), 2023, https://arxiv.org/abs/2008.06180.
    """
    layers = [
        *_normalised(_channels("itahara_mnist_cnn", shape), 32, 5, padding=0), nn.MaxPool2d(2),
        *_normalised(32, 64, 5, padding=0), nn.MaxPool2d(2),
    ]  # fmt: skip
    return _with_head("itahara_mnist_cnn", shape, layers, (512,), classes, normalise=True)


def itahara_fashion_cnn(shape: Shape, classes: int) -> nn.Module:
    """The CNN of S. Itahara et al. for Fashion-MNIST: 2,760,228 parameters for 28x28 grey images.

    Six 3x3 convolutions, pooled after the second and the fourth; otherwise as `itahara_mnist_cnn`.
    """
    inputs = _channels("itahara_fashion_cnn", shape)
    layers = [
        *_normalised(inputs, 32, 3, padding=1), *_normalised(32, 32, 3, padding=1),
        nn.MaxPool2d(2),
        *_normalised(32, 64, 3, padding=1), *_normalised(64, 64, 3, padding=1),
        nn.MaxPool2d(2),
        *_normalised(64, 128, 3, padding=1), *_normalised(128, 128, 3, padding=1),
    ]  # fmt: skip
    return _with_head("itahara_fashion_cnn", shape, layers, (382, 192), classes, normalise=True)


def resnet_gn(shape: Shape, classes: int, *, blocks: Blocks = 1, width: Width = 16) -> nn.Module:
    """A small ResNet: three stages of `blocks` residual blocks with width, 2 and 4 times width.

    Group normalisation in place of batch normalisation, whose running statistics differ from
    client to client (K. Hsieh et al., ICML 2020, https://arxiv.org/abs/1910.00189). K. He et al.,
    CVPR 2016, https://arxiv.org/abs/1512.03385. With the defaults 77,754 parameters for 28x28 grey.
    """
    layers = [
        nn.Conv2d(_channels("resnet_gn", shape), width, 3, padding=1, bias=False),
        _group_norm(width),
        nn.ReLU(),
    ]
    if min(shape[1:]) < 8:
        raise _too_small("resnet_gn", shape)
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            outputs, stride = width << stage, 2 if stage and not block else 1
            layers.append(_Residual(inputs, outputs, stride))
            inputs = outputs
    left = [-(-side // 4) for side in shape[1:]]
    # a pool of fixed size: the backward pass of the adaptive one has no fixed bits on a GPU
    return nn.Sequential(
        *layers, nn.AvgPool2d((left[0], left[1])), nn.Flatten(), nn.Linear(inputs, classes)
    )


class _Residual(nn.Module):
    """x -> ReLU(shortcut(x) + norm(conv(ReLU(norm(conv(x)))))), [B, inputs, ...] -> outputs."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            _group_norm(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            _group_norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), _group_norm(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.shortcut(x) + self.path(x))


def _with_head(
    name: str,
    shape: Shape,
    layers: Sequence[nn.Module],
    hidden: Sequence[int],
    classes: int,
    normalise: bool = False,
) -> nn.Sequential:
    """Convolutional layers, then flat ones sized to what they leave of the sample."""
    channels, sides = shape[0], list(shape[1:])
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
            lost = layer.kernel_size[0] - 1 - 2 * int(layer.padding[0])
            sides = [side - lost for side in sides]
        elif isinstance(layer, nn.MaxPool2d):
            sides = [side // 2 for side in sides]
        if min(sides) < 1:
            raise _too_small(name, shape)
    head: list[nn.Module] = [nn.Flatten()]
    inputs = channels * math.prod(sides)
    for outputs in hidden:
        norm = [nn.BatchNorm1d(outputs)] if normalise else []
        head += [nn.Linear(inputs, outputs), *norm, nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, *head, nn.Linear(inputs, classes))


def _normalised(inputs: int, outputs: int, side: int, padding: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, side, padding=padding)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _channels(name: str, shape: Shape) -> int:
    if len(shape) != 3:
        raise ValueError(
            f"model {name}: shape should be [channels, height, width], found {list(shape)}; "
            f"choose mlp for flat features"
        )
    return shape[0]


def _too_small(name: str, shape: Shape) -> ValueError:
    return ValueError(
        f"model {name}: images should be large enough for its convolutions and pools, found "
        f"{shape[1]}x{shape[2]}, of which nothing is left; choose a model with fewer of them"
    )
