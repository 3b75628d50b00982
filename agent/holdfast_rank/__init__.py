"""What every training process needs to be a rank of the agent's: the conversation and the layout of an image. Without torch.

The library (`holdfast`) and directory mode (`holdfast_directory`) stand on it.
"""
