"""One feature, one file: layers that come with rpcd; a config names them by their modules' names."""
