"""Where images come from: folders, CSV manifests, archives, downloads, TensorFlow Datasets, scikit-learn's digits."""
