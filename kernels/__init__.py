"""Operations on plain tensors: each has a reference in torch and a Triton kernel of the same signature."""
