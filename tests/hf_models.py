"""Small randomly initialised models of Hugging Face transformers, by the names of their classes."""

from typing import Any

import pytest
import torch
from torch import nn

SIZE, IGNORED = 64, 255
VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": SIZE,
    "patch_size": 8,
}
BEIT = VIT | {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}

# Each model's configuration, and its settings.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 8, 8],
            "num_attention_heads": [1, 1, 1, 1],
            "decoder_hidden_size": 8,
        },
    ),
    "BeitForSemanticSegmentation": ("BeitConfig", BEIT),
    "Data2VecVisionForSemanticSegmentation": ("Data2VecVisionConfig", BEIT),
    "DPTForSemanticSegmentation": (
        "DPTConfig",
        VIT
        | {
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "use_auxiliary_head": True,
            "patch_size": 16,
        },
    ),
    "MobileNetV2ForSemanticSegmentation": ("MobileNetV2Config", {"depth_multiplier": 0.25}),
    "MobileViTForSemanticSegmentation": (
        "MobileViTConfig",
        {
            "hidden_sizes": [8, 8, 8],
            "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
            "num_attention_heads": 2,
            "aspp_out_channels": 8,
            "image_size": SIZE,
        },
    ),
    "MobileViTV2ForSemanticSegmentation": (
        "MobileViTV2Config",
        {"width_multiplier": 0.25, "aspp_out_channels": 8, "image_size": SIZE},
    ),
    "Sapiens2ForSemanticSegmentation": (
        "Sapiens2Config",
        VIT
        | {
            "patch_size": 16,
            "pos_embed_rescale": None,  # drawn at random in training
            "head_config": {
                "upsample_out_channels": [8],
                "conv_out_channels": [8],
                "conv_kernel_sizes": [1],
            },
        },
    ),
    "Tipsv2DptForSemanticSegmentation": (
        "Tipsv2DptConfig",
        {
            "backbone_config": {
                "model_type": "tipsv2_vision_model",
                "hidden_size": 16,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 16,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
                "reshape_hidden_states": False,
            },
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
        },
    ),
    "UperNetForSemanticSegmentation": (
        "UperNetConfig",
        {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_channels": 8},
    ),
}
BACKBONE = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_stages": 4}


def make(name: str, **settings: Any) -> nn.Module:
    """A model in training mode, with the same weights each time; dropout is off."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    kind, small = CONFIGS[name]
    small = {"num_labels": 3, "semantic_loss_ignore_index": IGNORED} | small
    if name.startswith("UperNet"):
        out = ["stage1", "stage2", "stage3", "stage4"]
        small["backbone_config"] = transformers.ConvNextConfig(**BACKBONE, out_features=out)
        small |= {"loss_ignore_index": small.pop("semantic_loss_ignore_index")}
        small["auxiliary_in_channels"] = 8
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, kind)(**small | settings))
    with torch.no_grad():  # else the logits of an untrained head are all but equal
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for part in model.modules():
        if isinstance(part, (nn.Dropout, nn.Dropout2d)) or "DropPath" in type(part).__name__:
            part.eval()
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]
    return model.train()
