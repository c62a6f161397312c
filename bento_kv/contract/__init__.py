"""What both worlds sign: manifest, proof record, step plan, quantized weights. Imports neither of them."""
