"""Checkpoints that several processes wrote as chunks of tensors, by torch.distributed.checkpoint."""
