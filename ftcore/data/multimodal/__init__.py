"""Images: files, the model's processor, placeholders in the text."""
