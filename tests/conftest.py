"""Tests run on tiny tensors: two threads that wait for each other on a busy machine take six times
as long as one."""

import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for the Hub, or finds out what is there today
torch.set_num_threads(1)
