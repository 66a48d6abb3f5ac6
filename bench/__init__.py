"""Memory, speed and accuracy of every method of `quant` on LoRA-adapted models."""
