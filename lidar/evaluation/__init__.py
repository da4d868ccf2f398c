"""Official figures of detectors: KITTI average precision and nuScenes NDS."""
