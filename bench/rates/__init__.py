"""What each method leaves of known sources at the bits that it really takes, against the least that any code can."""
