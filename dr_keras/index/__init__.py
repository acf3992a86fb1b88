"""The index of images: its files, what it knows of images, how it is searched, and how it follows a folder."""
