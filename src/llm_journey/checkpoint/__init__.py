"""Models on disk: Hugging Face-layout folders, crash-safe checkpoints, model cards. safetensors and JSON only."""
