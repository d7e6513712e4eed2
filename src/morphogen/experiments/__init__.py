"""Papers, run again: one file each, with its settings, its published figures and a run that returns claims and curves."""

from collections.abc import Callable

from morphogen.experiments import (
    dagnn_bigger,
    dagnn_hops,
    dagnn_mnist,
    deep_to_shallow,
    den_mnist,
    depth_spirals,
    going_deeper_mnist,
    going_deeper_xor,
    gradmax_wide,
    growing_cifar,
    growing_controls,
    linear_regions,
    linked_allcnn,
    linked_depth,
    linked_extended,
    linked_plasticity,
    linked_resnet50,
    linked_shift,
    linked_width,
    lossless_compression,
)
from morphogen.record import Reproduction

Run = Callable[[bool, bool, int], Reproduction]
"""(faithful, smoke, seeds) -> what came out."""

EXPERIMENTS: dict[str, Run] = {
    "dagnn-bigger": dagnn_bigger.reproduce,
    "dagnn-hops": dagnn_hops.reproduce,
    "dagnn-mnist": dagnn_mnist.reproduce,
    "deep-to-shallow": deep_to_shallow.reproduce,
    "den-mnist": den_mnist.reproduce,
    "depth-spirals": depth_spirals.reproduce,
    "going-deeper-mnist": going_deeper_mnist.reproduce,
    "going-deeper-xor": going_deeper_xor.reproduce,
    "gradmax-wide": gradmax_wide.reproduce,
    "growing-cifar": growing_cifar.reproduce,
    "growing-controls": growing_controls.reproduce,
    "linear-regions": linear_regions.reproduce,
    "linked-allcnn": linked_allcnn.reproduce,
    "linked-depth": linked_depth.reproduce,
    "linked-extended": linked_extended.reproduce,
    "linked-plasticity": linked_plasticity.reproduce,
    "linked-resnet50": linked_resnet50.reproduce,
    "linked-shift": linked_shift.reproduce,
    "linked-width": linked_width.reproduce,
    "lossless-compression": lossless_compression.reproduce,
}
