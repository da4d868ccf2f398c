"""What a JEPA is: objectives, targets, masks, monitors and the training loop. Knows no sensor and no simulator."""
