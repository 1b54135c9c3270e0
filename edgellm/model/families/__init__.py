"""What the native path knows of each model family, from config.json to a Spec."""
