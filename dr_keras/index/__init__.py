"""The index of images: its files, what it stores about images, how it is searched and kept in sync with a folder."""
