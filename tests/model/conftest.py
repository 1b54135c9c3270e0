"""Shared by the tests of edgellm.model."""

import torch

torch.set_num_threads(1)  # tiny models: threads only get into each other's way
