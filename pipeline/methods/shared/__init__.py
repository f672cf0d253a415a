"""What methods have in common: their contract, and what several may be made of. No paper."""
