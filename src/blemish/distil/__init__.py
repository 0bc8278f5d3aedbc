"""Small networks taught by large ones, on any images: patch descriptors, and compact backbones."""
