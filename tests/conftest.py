import torch

# The tests' tensors are small, and run in several processes: more threads would only wait for each other.
torch.set_num_threads(1)
