"""3-D object detection on the shared sparse encoder."""
