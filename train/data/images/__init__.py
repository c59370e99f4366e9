"""Images: where a folder keeps them, decoding, cropping, and augmentation."""
