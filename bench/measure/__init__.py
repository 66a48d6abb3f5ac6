"""What a model costs and how far its weights moved: bytes, training memory, times, weight errors."""
