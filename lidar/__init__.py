"""Point clouds to bird's-eye-view (BEV) features: readers, voxels, sparse convolution, AD-L-JEPA."""
