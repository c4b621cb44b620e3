"""Finetuning on one's own pictures: the commands in their order, and a comparison of two models."""
