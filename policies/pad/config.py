"""PAD's choices."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal, NamedTuple

from contracts.serialization import require, require_finite
from policies.config import GROUPS, ChunkConfig, require_noise_at_first, require_width


class Size(NamedTuple):
    """Of a transformer."""

    layers: int
    width: int
    heads: int


SIZES = {  # arXiv 2411.18179, as DiT (arXiv 2212.09748); nano is ours, for a CPU
    "nano": Size(6, 256, 4),
    "S": Size(12, 384, 6),
    "B": Size(12, 768, 12),
    "L": Size(24, 1024, 16),
    "XL": Size(28, 1152, 16),
}
MAX_STEPS = 1000  # diffusion steps in training, so also the most in sampling


class PadConfig(ChunkConfig, frozen=True, kw_only=True):
    """The autoencoder, the transformer, what it predicts, and how that is sampled and tracked.

    Defaults train on a CPU: 96 px become latents of 12 x 12 x 8, these become 36 tokens. The paper's setting is size
    XL, pictures of 256 px through a pretrained sd-vae-ft-mse (`--vae-patch 1 --vae-channels 128 256 512 512
    --vae-layers 2 --vae-groups 32 --latent-channels 4 --pretrained-vae PATH`), CLIP, DDIM with 75 steps, `--poses
    absolute --no-eye --no-shared-modulation --prediction-type epsilon --action-weight 2 --action-ramp-steps 100000`.

    Attributes:
        horizon: actions in a chunk: as many as periods to the last of `future`.
        execute: actions carried out before the policy looks again; up to the first predicted pose in the paper.
        size: nano, S, B, L or XL, or LAYERSxWIDTHxHEADS such as 12x384x6.
        future: how many control periods ahead pictures and poses are predicted.
        predict_images: predict pictures too; without, poses alone with the same network, a comparison of the paper.
        present_apart: the present picture has tokens of its own, and the poses look at these instead of the pictures
            being imagined: imagining is then a second task of the same network, no more. Not in the paper; it shows
            which of the two helps or harms.
        depth: predict depth pictures too; the observation set then has a second camera, named `<camera>_depth`, whose
            pictures show depth as grey.
        poses: what is predicted of the end effector: where it will be (`absolute`, as in the paper), how far it will
            have moved (`relative`), or how far the demonstrated commands will have told it to move (`commanded`).
            Arms lag behind their commands, and those that push against something hardly move.
        patch: latent positions along each side of a token. 2 in the paper.
        shared_modulation: all blocks share one modulation (adaLN-single): a third fewer parameters. DiT's do not.
        eye: a few convolutions look at the clean picture itself, beside its latents, and are trained with the
            transformer: small things, like goals of two pixels, are lost in latents. Not in the paper.
        eye_channels: channels of the details that these convolutions add to the tokens of pictures.
        keypoints: image positions (a spatial softmax) that they add to the token of poses.
        latent_channels: channels of the autoencoder's latents.
        vae_patch: pixels along each side of what its first convolution sees as one place. 1 in Stable Diffusion's; on a
            CPU, convolutions over all pixels cost more than all the rest.
        vae_channels: channels of its levels, each but the last halving the picture; multiples of vae_groups.
        vae_layers: residual blocks per level.
        vae_groups: groups of its GroupNorms.
        vae_steps: optimiser steps of the first stage, which trains the autoencoder.
        vae_batch_size: samples per step in that stage.
        vae_learning_rate: learning rate in that stage.
        pretrained_vae: directory of an AutoencoderKL as diffusers saves it, in place of that stage.
        pretrained_dit: directory of a DiTTransformer2DModel as diffusers saves it, to start the transformer from.
        text: how an instruction is told: by an embedding that is learned with the rest (`learned`), or by that of a
            frozen encoder of sentences (`sentence`) or of CLIP (`clip`, as in the paper), which a robot does not need.
        text_dim: length of the embedding: of all-MiniLM-L6-v2 384, of CLIP ViT-B/32 512.
        text_directory: directory of that frozen encoder, as Hugging Face's transformers saves it.
        prediction_type: what the network gives: the noise (`epsilon`, as in the paper), the clean sample, or their
            mixture `v_prediction` (arXiv 2202.00512).
        action_weight: weight of the error of poses (and depth) against that of pictures.
        action_ramp_steps: optimiser steps over which this weight rises from 0.
        solver: how chunks are sampled: `dpm++` (DPM-Solver++(2M), arXiv 2211.01095) or `ddim`.
        inference_steps: runs of the network for a chunk.
        gripper_threshold: the gripper closes while the predicted opening is below this, and opens above it.
    """

    horizon: int = 12
    execute: int = 4
    state_history: int = 1
    size: str = "nano"
    future: tuple[int, ...] = (4, 8, 12)
    predict_images: bool = True
    present_apart: bool = False
    depth: bool = False
    poses: Literal["absolute", "relative", "commanded"] = "commanded"
    patch: int = 2
    shared_modulation: bool = True
    eye: bool = True
    eye_channels: int = 32
    keypoints: int = 32
    latent_channels: int = 8
    vae_patch: int = 4
    vae_channels: tuple[int, ...] = (32, 48)
    vae_layers: int = 1
    vae_groups: int = GROUPS
    vae_steps: int = 1500
    vae_batch_size: int = 16
    vae_learning_rate: float = 2e-3
    pretrained_vae: str = ""
    pretrained_dit: str = ""
    text: Literal["learned", "sentence", "clip"] = "learned"
    text_dim: int = 64
    text_directory: str = ""
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "sample"
    action_weight: float = 5.0
    action_ramp_steps: int = 500
    solver: Literal["dpm++", "ddim"] = "dpm++"
    inference_steps: int = 8
    gripper_threshold: float = 0.95

    def __post_init__(self) -> None:
        self.transformer_size  # noqa: B018  # refuses a wrong one
        require(
            bool(self.future) and self.future[0] > 0 and all(a < b for a, b in pairwise(self.future)),
            f"future must rise and begin after 0, the present, not {self.future}",
        )
        require(
            self.horizon == self.future[-1],
            f"horizon {self.horizon} must be the last of future {self.future}",
        )
        require(
            self.predict_images or not self.present_apart,
            "present_apart needs predict_images: without it there is nothing to set the present apart from",
        )
        require(1 <= self.execute <= self.horizon, f"execute must be within [1, {self.horizon}], not {self.execute}")
        require(
            min(self.state_history, self.image_history) > 0,
            "state_history and image_history must be positive: a policy sees the present",
        )
        require(min(self.eye_channels, self.keypoints) > 0, "eye_channels and keypoints must be positive")
        require(
            not self.eye or self.downsampling % 2 == 0,
            f"with an eye, a latent must be an even number of pixels wide, not {self.downsampling}: a larger vae_patch",
        )
        require(
            min(self.patch, self.vae_patch, self.latent_channels) > 0,
            "patch, vae_patch and latent_channels must be positive",
        )
        require(
            bool(self.vae_channels) and self.vae_groups > 0, "vae_channels must not be empty, and vae_groups positive"
        )
        for channels in self.vae_channels:
            require(
                channels > 0 and channels % self.vae_groups == 0,
                f"vae_channels must be positive multiples of vae_groups ({self.vae_groups}), not {channels}",
            )
        require(
            min(self.vae_layers, self.vae_steps, self.vae_batch_size) > 0,
            "vae_layers, vae_steps and vae_batch_size must be positive",
        )
        for name in ("vae_learning_rate", "action_weight", "gripper_threshold"):
            require_finite(name, getattr(self, name))
        require(self.vae_learning_rate > 0, "vae_learning_rate must be positive")
        require(self.text_dim > 0, "text_dim must be positive")
        require(
            self.text != "clip" or bool(self.text_directory), "text clip needs text_directory: where that model lies"
        )
        require(self.action_weight > 0, "action_weight must be positive: without it no pose is learned")
        require(self.action_ramp_steps >= 0, "action_ramp_steps cannot be negative")
        require(
            1 <= self.inference_steps <= MAX_STEPS,
            f"inference_steps must be within [1, {MAX_STEPS}], not {self.inference_steps}",
        )
        if self.solver == "ddim":
            require_noise_at_first(self.inference_steps, MAX_STEPS)

    @property
    def transformer_size(self) -> Size:
        """What `size` means. Raises ValueError."""
        if self.size in SIZES:
            return SIZES[self.size]
        own = re.fullmatch(r"(\d{1,4})x(\d{1,5})x(\d{1,4})", self.size)
        require(own is not None, f"size must be {', '.join(SIZES)} or LAYERSxWIDTHxHEADS, not {self.size!r}")
        assert own is not None
        size = Size(*(int(number) for number in own.groups()))
        require(min(size) > 0, f"size {self.size!r}: all three must be positive")
        require_width("the transformer's width", size.width)
        require(size.width % size.heads == 0, f"width {size.width} must be a multiple of heads {size.heads}")
        return size

    @property
    def downsampling(self) -> int:
        """Pixels along each side of a latent position."""
        return self.vae_patch * 2 ** (len(self.vae_channels) - 1)
