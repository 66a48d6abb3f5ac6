"""How much worse a model becomes when one of its matrices alone is quantized."""
