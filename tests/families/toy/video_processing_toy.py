"""Frames of the toy family: every frame is a square of `image_size` pixels."""

import torch
from transformers import BatchFeature

from ..frames import FrameProcessor
from ..visual import CELL


def frame_layout(frames, cells):
    places = torch.cartesian_prod(torch.arange(frames), torch.arange(cells), torch.arange(cells)).view(-1, 3)
    return torch.nn.functional.pad(places, (0, 1), value=CELL)


class ToyVideoProcessor(FrameProcessor):
    def __init__(
        self, size=None, patch_size=16, num_frames=4, frame_sampling="uniform", do_sample_frames=True, **kwargs
    ):
        super().__init__(**kwargs)
        self.size, self.patch_size = dict(size or {"height": 64, "width": 64}), patch_size
        self.num_frames, self.frame_sampling, self.do_sample_frames = num_frames, frame_sampling, do_sample_frames
        self.background, self.canvas = [255, 255, 255], "square"

    @property
    def max_cells(self):
        return self.size["height"] // self.patch_size

    @property
    def cell_size(self):
        return self.patch_size

    def token_count(self, num_frames, height, width, kind="video"):
        return num_frames * self.max_cells**2

    def longer_side(self, height, width):
        return self.size["height"]

    def most_tokens(self, num_frames):
        return self.token_count(num_frames, 1, 1)

    def token_layout(self, inputs, i, kind="video"):
        return frame_layout(int(inputs[f"{kind}_placement"][i]), self.max_cells)

    def layout(self, sizes):
        frames = [size[0] for size in sizes]
        pixels = torch.empty(len(sizes), max(frames), 3, *self.size.values(), device="meta")
        return BatchFeature({"pixel_values_videos": pixels, "video_placement": torch.tensor(frames)})

    def place(self, clips, is_image=False):
        frames = [len(clip) for clip in clips]
        pixels = torch.zeros(len(clips), max(frames), 3, *self.size.values())
        for place, clip in zip(pixels, clips):
            resized = torch.from_numpy(self.resize(clip, *self.size.values()))
            place[: len(clip)] = resized.permute(0, 3, 1, 2).float() / 127.5 - 1
        names = self.image_input_names if is_image else self.model_input_names
        return {names[0]: pixels.squeeze(1) if is_image else pixels, names[1]: torch.tensor(frames)}
