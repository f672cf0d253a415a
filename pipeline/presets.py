"""Settings of the papers, by name: `preset=patchcore_paper`. Defaults are for users."""

from collections.abc import Mapping

# The geometry of the papers, which MVTec AD's square images suit.
_CROPPED: Mapping[str, object] = {"resize": 256, "crop": 224}
_WIDE_RESNET = "wide_resnet50_2.tv_in1k"

PRESETS: Mapping[str, Mapping[str, object]] = {
    # Roth et al., CVPR 2022, section 4.1: layers 2 and 3, Eq. 7, and the 10 % bank.
    "patchcore_paper": {
        "image": _CROPPED,
        "backbone": {"name": _WIDE_RESNET, "layers": [2, 3]},
        "method": {
            "name": "patchcore",
            "embedding": "official",
            "coreset_fraction": 0.1,
            "image_score": "reweighted",
        },
    },
    # Cohen and Hoshen, 2020: retrieval by the last layer, pixels of the first three.
    "spade_paper": {
        "image": _CROPPED,
        "backbone": {"name": _WIDE_RESNET, "layers": [1, 2, 3, 4]},
        "method": {"name": "spade", "retrieved": 50, "neighbours": 1},
    },
    # Defard et al., ICPR 2021: 550 of 1792 channels. 100 with ResNet-18.
    "padim_paper": {
        "image": _CROPPED,
        "backbone": {"name": _WIDE_RESNET, "layers": [1, 2, 3]},
        "method": {"name": "padim", "dimensions": 550},
    },
    # Rippel et al., ICPR 2020: nine levels of EfficientNet-B4 on the whole image.
    "mahalanobis_paper": {
        "image": {"resize": [380, 380]},
        "backbone": {
            "name": "tf_efficientnet_b4.aa_in1k",
            "layers": ["bn1", *(f"blocks.{number}" for number in range(7)), "bn2"],
        },
        "method": {"name": "mahalanobis"},
    },
    # Lee et al., IEEE Access 2022.
    "cfa_paper": {
        "image": _CROPPED,
        "backbone": {"name": _WIDE_RESNET, "layers": [1, 2, 3]},
        "method": {"name": "cfa"},
    },
    # Bergman et al., 2020.
    "dn2_paper": {
        "image": _CROPPED,
        "backbone": {"name": "resnet101.tv_in1k", "layers": [4]},
        "method": {"name": "dn2", "neighbours": 2},
    },
    # Li et al., ICLR 2024, as the authors' code is configured: blocks 5, 11, 17, 23, counted from
    # one, of 518 pixels, for which timm resamples the positions.
    "musc_paper": {
        "image": {"resize": [518, 518]},
        "backbone": {
            "name": "vit_large_patch14_clip_quickgelu_336.openai",
            "layers": [4, 10, 16, 22],
        },
        "method": {"name": "musc", "neighbourhood": 5, "nearest_share": 0.3},
    },
    # Damm et al., WACV 2025, full-shot: all tokens of the last block of DINOv2 ViT-S/14.
    "anomalydino_paper": {
        "image": {"resize": [448, 448]},
        "backbone": {"name": "vit_small_patch14_dinov2.lvd142m", "layers": [11]},
        "method": {
            "name": "patchcore",
            "embedding": "concat",
            "neighbourhood": 1,
            "coreset_fraction": 1.0,
            "max_bank_rows": 10_000_000,
            "distance": "cosine",
            "image_score": "mean_top",
        },
    },
    # Zhang et al., ICML 2026 (arXiv 2601.22763), as github.com/longkukuhi/RAD at 59847f4 runs it on
    # MVTec AD: 512 x 512, of which 448 are cut out; blocks 3, 6, 9 and 11 of DINOv3 ViT-B/16 behind
    # the final norm, 150 images, radius 1, all layers alike, the largest 1 %.
    "rad_paper": {
        "image": {"resize": [512, 512], "crop": 448},
        "backbone": {"name": "vit_base_patch16_dinov3.lvd1689m", "layers": [3, 6, 9, 11]},
        "method": {
            "name": "spade",
            "retrieved": 150,
            "pixel_layers": 4,
            "gallery": "same_location",
            "location_radius": 1,
            "distance": "cosine",
            "image_score": "mean_top",
            "top_fraction": 0.01,
        },
    },
    # Roming et al., 2026 (arXiv 2605.14808), as github.com/LukasRoom/SuperADD at 44cf251: blocks 7,
    # 15, 23 and 31 of DINOv3 ViT-H+/16, a bank of 100,000 rows for each, on tiles of 640 pixels, of
    # which by Eq. 1 two overlap by 2 * 128 at least. They resize each photo by 0.625, which no
    # setting says here: 2 megapixels at most. The image score is of anomalib 2.7.0; they have none.
    "superadd_paper": {
        "image": {
            "resize": "auto",
            "pixels": 2_000_000,
            "tile": {"size": 640, "overlap": 256},
        },
        "backbone": {"name": "vit_huge_plus_patch16_dinov3.lvd1689m", "layers": [7, 15, 23, 31]},
        "method": {
            "name": "patchcore",
            "embedding": "concat",
            "neighbourhood": 1,
            "layers_apart": True,
            "coreset_fraction": 1.0,
            "max_bank_rows": 100_000,
            "image_score": "mean_top",
            "top_fraction": 0.001,
        },
    },
}
