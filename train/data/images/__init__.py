"""Images: listing of folders, decoding, cropping and augmentation."""
