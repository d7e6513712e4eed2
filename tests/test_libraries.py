"""Models of torchvision and timm, where these are installed."""

import importlib

import pytest
import torch

import morphogen as mg
from architectures import grows_by_a_quarter_and_shrinks_back

# model: attributes that hold sizes in their code
TORCHVISION: dict[str, tuple[str, ...]] = {
    "alexnet": (),
    "vgg11_bn": (),
    "resnet18": (),
    "resnet50": (),
    "resnext50_32x4d": (),
    "densenet121": (),
    "mobilenet_v2": (),
    "mobilenet_v3_small": (),
    "efficientnet_b0": (),
    "convnext_tiny": (),
    "regnet_y_400mf": (),
    "shufflenet_v2_x0_5": (),
    "squeezenet1_0": (),
    "googlenet": (),
    "swin_t": (),
    "vit_b_16": ("hidden_dim",),
}
TIMM: dict[str, tuple[str, ...]] = {
    "vit_tiny_patch16_224": ("head_dim", "attn_dim"),
    "resmlp_12_224": (),
    "mobilevit_xxs": ("head_dim", "attn_dim"),
}


@pytest.mark.parametrize(
    ("library", "name"),
    [*(("torchvision", name) for name in TORCHVISION), *(("timm", name) for name in TIMM)],
)
def test_a_model_grows_and_shrinks_back(library: str, name: str) -> None:
    try:
        models = importlib.import_module(library)
    except Exception as error:  # a build for another torch fails in its own ways
        pytest.skip(f"{library} is not installed: {error}")
    torch.manual_seed(0)
    model = (
        models.models.get_model(name, weights=None)
        if library == "torchvision"
        else models.create_model(name)
    )
    if attributes := (TORCHVISION | TIMM)[name]:
        mg.follow(model, *attributes)
    grows_by_a_quarter_and_shrinks_back(model.eval(), torch.randn(2, 3, 224, 224))
