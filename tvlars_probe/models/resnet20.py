"""The ResNet of 20 layers for small images (He, Zhang, Ren, Sun 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTHS = (16, 32, 64)
"""Channels of the three stages."""

BLOCKS = 3
"""Blocks of a stage, of two convolutions each: with the first convolution and the last layer 6·3 + 2 = 20 layers."""


class ResidualBlock(nn.Module):
    """y = relu(F(x) + shortcut(x)), F two 3×3 convolutions with BatchNorm after each and a ReLU between them.

    The shortcut is the paper's option A, which has no parameters: the identity, or where the block halves the
    resolution every second pixel, with channels of zeros behind the old ones.

    Args:
        channels: channels of x.
        width: channels of y.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.new_channels = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, channels, height, width) to ``width`` channels, the sides divided by the stride, rounded up."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))


class ResNet20(nn.Module):
    """Three stages of three blocks; the second and the third begin by halving the resolution.

    Args:
        channels: channels of an image.
        num_classes: number of outputs.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], stride=2)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (samples, num_classes) of images of any size."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stage(channels: int, width: int, *, stride: int) -> nn.Sequential:
    first = ResidualBlock(channels, width, stride)
    return nn.Sequential(first, *(ResidualBlock(width, width, 1) for _ in range(BLOCKS - 1)))
