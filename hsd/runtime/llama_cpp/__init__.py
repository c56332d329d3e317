"""Steps by llama.cpp's library: GGUF models on every processor and GPU that it knows."""
